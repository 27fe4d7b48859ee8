"""FastMKA: keys and values mixed with their own moving averages at several horizons, before one full attention.

The route-fused form of multi-level memory (MKA, https://arxiv.org/abs/2603.20586): a router weighs a token's own key
and value against summaries of what came before, and the sum is what is cached and attended. Averaging commutes with a
projection, so the averages are taken of keys and values, which are narrower than hidden states:

    lam    = softmax(router(raw keys of the token))             [kv_heads, 1 + horizons], shared by keys and values
    mix    = lam_0 x + sum_m lam_m EMA_m(x)                     x = raw key or value, before norm and rotation
    fused  = x + s (mix - x)                                    s per KV head, of keys and of values, zero at first

What it does not do: it stores as many keys and values as the plain model and attends to all of them. It mixes; it does
not save memory, and time per token grows with the context as it does without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import rms_norm, silu

from tenuto.attention.full import FullState, causal, masked
from tenuto.attention.policy import Attention, AttentionCall, Claim, Heads, Paper, Shape, State
from tenuto.attention.scan import ema_mix
from tenuto.errors import PolicyError

__all__ = ["FastMKA", "FastMKAHeads", "FastMKAState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FastMKA(Attention):
    """Moving averages of keys and values, mixed in by a router.

    Attributes:
        horizons: how many averages, evenly spaced in logarithm at first; each KV head learns its own.
        shortest: horizon of the first average at first, in tokens.
        longest: horizon of the last average at first, in tokens.
        bottleneck: hidden channels of the router.

    Raises:
        PolicyError: a number below 1, or longest below shortest.
    """

    horizons: int = 3
    shortest: int = 4
    longest: int = 256
    bottleneck: int = 32

    paper: ClassVar[Paper] = Paper(
        "MKA: Memory-Keyed Attention for Efficient Long-Context Reasoning",
        "Dong Liu, Yanxuan Yu, Ben Lengerich, Ying Nian Wu",
        2026,
        "https://arxiv.org/abs/2603.20586",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("training throughput against MLA", "up to 5x (5.01x at 256K)", "Qwen2.5-7B, A800", "abstract, table 2"),
        Claim("decoding latency against MLA", "1.8x lower (1.86x at 256K)", "Qwen2.5-7B, A800", "abstract, table 3"),
        Claim("perplexity, beside 3.22 of MLA", "3.26", "Qwen2.5-7B, WikiText-2, 16K", "table 1"),
    )
    trials: ClassVar[tuple[str, ...]] = ("fastmka:horizons=2,shortest=2,longest=40,bottleneck=8",)

    def __post_init__(self) -> None:
        if min(self.horizons, self.shortest, self.bottleneck) < 1 or self.longest < self.shortest:
            raise PolicyError(
                f"{self} is not allowed: horizons, shortest and bottleneck are 1 or more, longest is no less than "
                "shortest."
            )

    @property
    def identity(self) -> bool:
        """See :class:`Attention`."""
        return True

    def build(self, shape: Shape) -> FastMKAHeads:
        """The module for one layer."""
        return FastMKAHeads(self, shape)


@dataclass(slots=True, eq=False)
class FastMKAState(FullState):
    """Fused keys after rotation and fused values, and the running averages of the raw ones.

    Attributes:
        ema: before bias correction, float32 or wider ``[batch, kv_heads, horizons, 2 head_dim]``, keys then values.
    """

    ema: torch.Tensor | None = None


class FastMKAHeads(Heads):
    """FastMKA of one layer.

    Attributes:
        log_horizon: logarithm of each horizon in tokens ``[kv_heads, horizons]``.
        strength: ``s`` of keys and of values ``[kv_heads, 2]``, zero until trained.
        down, up: the router, ``kv_heads head_dim -> bottleneck -> kv_heads (1 + horizons)``; even weights at first.
    """

    def __init__(self, attention: FastMKA, shape: Shape) -> None:
        super().__init__()
        self.shape, self.horizons = shape, attention.horizons
        first, last = math.log(attention.shortest), math.log(attention.longest)
        self.log_horizon = nn.Parameter(torch.linspace(first, last, self.horizons).repeat(shape.kv_heads, 1))
        self.strength = nn.Parameter(torch.zeros(shape.kv_heads, 2))
        self.down = nn.Linear(shape.kv_heads * shape.head_dim, attention.bottleneck, bias=False)
        self.up = nn.Linear(attention.bottleneck, shape.kv_heads * (1 + self.horizons))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def state(self) -> FastMKAState:
        """An empty state."""
        return FastMKAState()

    def forward(self, call: AttentionCall, state: State | None) -> torch.Tensor:
        """See :class:`Heads`."""
        if state is not None and not isinstance(state, FastMKAState):
            raise TypeError("a state of another attention")
        raw, share = masked(call), self._route(call.k)
        x = raw.to(torch.promote_types(raw.dtype, torch.float32))
        horizon = self.log_horizon.to(x.dtype).exp()
        mix, ema = ema_mix(x, horizon, call.number, share.to(x.dtype), state.ema if state else None)
        strength = self.strength.to(x.dtype).repeat_interleave(self.shape.head_dim, 1)[:, None]
        k, v = torch.lerp(x, mix.to(x.dtype), strength).to(raw.dtype).chunk(2, -1)
        if state is not None:
            state.ema = ema
        self._count(share, call)
        return causal(call, k, v, state)

    def _route(self, k: torch.Tensor) -> torch.Tensor:
        """The weight of a token's own key and value, then of each horizon ``[batch, kv_heads, tokens, 1 + horizons]``.

        Args:
            k: raw keys ``[batch, kv_heads, tokens, head_dim]``.
        """
        batch, heads, tokens, _ = k.shape
        flat = k.transpose(1, 2).reshape(batch, tokens, -1)
        logits = self.up(silu(self.down(rms_norm(flat, flat.shape[-1:]))))
        return torch.as_tensor(logits.view(batch, tokens, heads, -1).transpose(1, 2).softmax(-1))

    def _count(self, share: torch.Tensor, call: AttentionCall) -> None:
        """Add the weights the router gave to :attr:`usage`, the same for all query heads of a KV head."""
        if self.usage is None:
            return
        total = (share.detach() * call.real[:, None, :, None]).sum((0, 2))
        total = total.repeat_interleave(self.shape.heads // self.shape.kv_heads, 0)
        levels = ["own", *(f"ema{number}" for number in range(1, self.horizons + 1))]
        new = dict(zip(levels, total.unbind(-1), strict=True)) | {"tokens": call.real.sum()}
        for name, value in new.items():
            self.usage[name] = self.usage.get(name, 0) + value

    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """``2 kv_heads head_dim (tokens itemsize + horizons max(itemsize, 4))``."""
        entry = 2 * self.shape.kv_heads * self.shape.head_dim
        return {"device": entry * (tokens * itemsize + self.horizons * max(itemsize, 4))}
