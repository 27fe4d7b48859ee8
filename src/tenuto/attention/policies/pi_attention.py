"""PiAttention: a window, and every ``stride``-th token before it.

After Liu and Yu, "PiAttention: Periodic Sparse Transformers for Efficient Long-Context Modeling"
(https://arxiv.org/abs/2511.10696), whose code is not public. A query sees the last ``window`` tokens, and beyond them
only those at multiples of its head's stride, so that it reads ``window + tokens / stride`` keys in a layer instead of
all, and a few layers carry what is in the gaps. It also sees the first ``sinks`` tokens, which the paper does not have.

The gate between the two sets is ``sigmoid(lse_near - lse_skip + b + w q)``, with a learned number ``b`` and vector
``w`` per head, both zero at first: then the two are exactly one softmax over the union, and a pretrained model starts
from its own attention on fewer keys. The paper's gate, a network of the query alone, starts from anything.

What it does not do: save memory, unless ``last`` (or ``variant=single``) bounds the distance. A query of every residue
class is to come, so over time every token is needed. A cache then saves reads, not bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tenuto.attention.columns import first_tokens, joined
from tenuto.attention.pi_backends import BACKENDS, masked, step
from tenuto.attention.pi_pattern import VARIANTS, Pattern, coprime_strides
from tenuto.attention.pi_reshape import Pair
from tenuto.attention.policy import Attention, AttentionCall, Claim, Heads, Paper, Shape, State
from tenuto.errors import AttachError, PolicyError, closest

__all__ = ["PiAttention", "PiHeads", "PiState"]

ROOM = 64  # columns a cache grows by


@dataclass(frozen=True, slots=True, kw_only=True)
class PiAttention(Attention):
    """Window, sinks and periodic skips.

    Attributes:
        window: tokens a query sees, itself included.
        stride: distance of the skips, in tokens.
        sinks: first tokens of a row that all see.
        variant: ``multiples`` of the stride, the stride itself (``single``), or 1, 2, 4, ... strides (``log``).
        last: with ``multiples``, how many beyond the window are seen, 0 for all. Bounds the cache.
        coprime: every head has a stride of its own near ``stride``, co-prime with those of the other heads.
        phases: the skips of the heads are moved against each other, by ``head * stride / heads`` tokens.
        backend: ``reshape``, ``dense`` (slow, the reference) or ``flex`` (on a CPU for inference only), for whole rows.

    Raises:
        PolicyError: a number out of its range, or an unknown name.
    """

    window: int = 256
    stride: int = 64
    sinks: int = 4
    variant: str = "multiples"
    last: int = 0
    coprime: bool = False
    phases: bool = False
    backend: str = "reshape"

    paper: ClassVar[Paper] = Paper(
        "PiAttention: Periodic Sparse Transformers for Efficient Long-Context Modeling",
        "Dong Liu, Yanxuan Yu",
        2025,
        "https://arxiv.org/abs/2511.10696",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("perplexity against RingAttention", "8.3 % lower", "not named in the abstract", "abstract"),
        Claim("GPUs for the same context length", "50 % fewer", "not named in the abstract", "abstract"),
    )
    aliases: ClassVar[Mapping[str, str]] = {"pi": "pi_attention"}
    trials: ClassVar[tuple[str, ...]] = (
        "pi_attention:window=8,stride=3,sinks=2",
        "pi_attention:window=5,stride=7,sinks=0,coprime=true,phases=true",
        "pi_attention:window=4,stride=3,variant=log,phases=true",
        "pi_attention:window=6,stride=4,last=3,coprime=true,sinks=2",
        "pi_attention:window=5,stride=9,variant=single,sinks=3",
        "short_conv+pi_attention:window=8,stride=3,sinks=2",
    )

    def __post_init__(self) -> None:
        if self.window < 1 or self.sinks < 0 or self.last < 0:
            raise PolicyError(f"{self} is not allowed: window is 1 or more, sinks and last 0 or more.")
        if self.stride < 1:
            raise PolicyError(f"stride={self.stride} is not allowed: a stride is 1 or more. For none use `window`.")
        for given, allowed in ((self.variant, VARIANTS), (self.backend, BACKENDS)):
            if given not in allowed:
                raise PolicyError(f"{self.name} does not know {given!r}.{closest(given, allowed)}")
        if self.last and self.variant != "multiples":
            raise PolicyError(f"last={self.last} was given with variant={self.variant}. It belongs to multiples.")
        if self.variant == "single" and self.stride < self.window:
            raise PolicyError(
                f"stride={self.stride} is inside window={self.window}: a single skip sees nothing new. "
                "Give a stride of the window or more, or variant=multiples."
            )

    @property
    def period(self) -> int:
        """See :class:`Attention`."""
        return self.stride

    def pattern(self, heads: int, layer: int = 0) -> Pattern:
        """The pattern of one layer with so many query heads."""
        least = self.window if self.variant == "single" else 2
        strides = coprime_strides(self.stride, heads, layer, least) if self.coprime else (self.stride,) * heads
        phases = tuple(head * stride // heads if self.phases else 0 for head, stride in enumerate(strides))
        return Pattern(
            window=self.window,
            sinks=self.sinks,
            strides=strides,
            phases=phases,
            variant=self.variant,
            last=self.last,
        )

    def build(self, shape: Shape) -> PiHeads:
        """The module for one layer; a window or stride longer than the model's context is refused."""
        for given, length in (("window", self.window), ("stride", self.stride)):
            if length > shape.context:
                raise PolicyError(f"{given}={length} is longer than the model's context of {shape.context}. Give less.")
        return PiHeads(self, shape)


@dataclass(slots=True, eq=False)
class PiState(State):
    """Rotated keys and values: of all columns, with room for more, or of the last ones and of the sinks.

    Attributes:
        k, v: ``[batch, kv_heads, columns, head_dim]``, columns being ``seen`` and up to ``ROOM - 1`` more, or those a
            bounded pattern can reach; sink_k, sink_v: ``[batch, kv_heads, sinks, head_dim]``, with a bounded one.
        bounded: whether earlier columns are dropped.
    """

    k: torch.Tensor | None = None
    v: torch.Tensor | None = None
    sink_k: torch.Tensor | None = None
    sink_v: torch.Tensor | None = None
    bounded: bool = False

    @property
    def croppable(self) -> bool:
        """Whether :meth:`crop` can forget columns."""
        return not self.bounded

    def crop(self, columns: int) -> None:
        """Forget the last columns; see :class:`State`. A bounded state has dropped what would come back into reach."""
        if columns == 0 or self.k is None or self.v is None or self.count is None:
            return
        if self.bounded:
            raise AttachError(
                f"The last {columns} tokens cannot be taken out of a cache that has dropped those before them. "
                "Use greedy, sampled or beam decoding, not assisted decoding, or a pattern without `last`."
            )
        self.seen = max(self.seen - columns, 0)
        self.count = self.count - columns
        self.k, self.v = (x[:, :, : _roomy(self.seen)].clone() for x in (self.k, self.v))


def _roomy(columns: int) -> int:
    return -(-columns // ROOM) * ROOM


class PiHeads(Heads):
    """PiAttention of one layer."""

    def __init__(self, attention: PiAttention, shape: Shape) -> None:
        super().__init__()
        self.pattern, self.shape = attention.pattern(shape.heads, shape.layer), shape
        self.backend = attention.backend
        self.gate = nn.Parameter(torch.zeros(shape.heads))
        self.gate_q = nn.Parameter(torch.zeros(shape.heads, shape.head_dim))

    def state(self) -> PiState:
        """An empty state."""
        return PiState(bounded=self.pattern.reach is not None)

    def forward(self, call: AttentionCall, state: State | None) -> torch.Tensor:
        """See :class:`Heads`."""
        if state is not None and not isinstance(state, PiState):
            raise TypeError("a state of another attention")
        q, k = call.normalise(call.q, call.k)
        bias = self.gate[:, None] + (q * self.gate_q[:, None]).sum(-1) * call.scale
        q, k = call.rotate(q, call.number), call.rotate(k, call.number)
        whole = (state is None or not state.seen) and not call.dropout and bool((call.number[:, 0] == 0).all())
        if whole:
            backend = "reshape" if self.usage is not None and self.backend == "flex" else self.backend
            out, near = BACKENDS[backend](q, k, call.v, bias, self.pattern, call.scale)
            if state is not None:
                self._keep(state, k, call.v, call.number)
        else:
            out, near = self._with(state or self.state(), q, k, call, bias)
        if self.usage is not None:
            self._watch(near, call.real)
        return out

    def _with(self, state: PiState, q: torch.Tensor, k: torch.Tensor, call: AttentionCall, bias: torch.Tensor) -> Pair:
        """A call after others, or of padded rows: over the columns held and the new ones."""
        keys, values, sinks = self._keep(state, k, call.v, call.number)
        columns, sunk = keys.shape[2], self.pattern.sinks
        at = call.number[:, -1:] + torch.arange(1 - columns, 1, device=q.device)
        first = torch.arange(sunk, device=q.device)[None] - at[:, :1]
        if sinks is not None:  # in front, and no longer seen where they stood
            keys, values = joined(sinks[0], keys), joined(sinks[1], values)
            first = torch.arange(sunk, device=q.device).expand(len(at), -1)
            at = torch.cat([first, at.masked_fill(at < sunk, -1)], 1)
        numbers = call.number, at
        if q.shape[2] == 1 and not call.dropout:
            return step(q, keys, values, bias, self.pattern, call.scale, numbers, first)
        return masked(q, keys, values, bias, self.pattern, call.scale, numbers, call.dropout)

    def _keep(
        self, state: PiState, k: torch.Tensor, v: torch.Tensor, number: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Pair | None]:
        """Put new columns in the state: the columns it can reach with the new ones, and the sinks if they are apart."""
        reach, sunk, total = self.pattern.reach, self.pattern.sinks, state.seen + k.shape[2]
        if reach is None:
            kept = state.k is not None and state.k.is_inference() and not torch.is_inference_mode_enabled()
            frozen = torch.is_grad_enabled() or kept  # what must not be written to in place
            if state.k is None or state.v is None or total > state.k.shape[2] or frozen:
                state.k, state.v = _grown(state.k, k, state.seen), _grown(state.v, v, state.seen)
            else:
                state.k[:, :, state.seen : total], state.v[:, :, state.seen : total] = k, v
            return state.k[:, :, :total], state.v[:, :, :total], None
        keys, values = joined(state.k, k), joined(state.v, v)
        state.sink_k = first_tokens(state.sink_k, k, number, sunk)
        state.sink_v = first_tokens(state.sink_v, v, number, sunk)
        state.k, state.v = keys[:, :, -reach:].clone(), values[:, :, -reach:].clone()
        return keys, values, (state.sink_k, state.sink_v)

    def _watch(self, near: torch.Tensor, real: torch.Tensor) -> None:
        usage = self.usage if self.usage is not None else {}
        found = {"near": near, "skip": 1 - near, "tokens": torch.ones_like(near)}
        for level, share in found.items():
            total = (share * real[:, None]).sum((0, 2))
            usage[level] = usage.get(level, 0) + (total[0] if level == "tokens" else total)

    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """``2 kv_heads head_dim itemsize`` times ``tokens`` rounded up to 64, or ``sinks + min(tokens, reach)``.

        The latter where the pattern is bounded; ``reach`` is its largest distance, below ``window + last * stride``.
        """
        entry, reach = 2 * self.shape.kv_heads * self.shape.head_dim * itemsize, self.pattern.reach
        return {"device": entry * (_roomy(tokens) if reach is None else self.pattern.sinks + min(tokens, reach))}


def _grown(held: torch.Tensor | None, new: torch.Tensor, seen: int) -> torch.Tensor:
    parts = [new] if held is None else [held[:, :, :seen], new]
    return torch.cat([*parts, new.new_zeros(*new.shape[:2], -(seen + new.shape[2]) % ROOM, new.shape[3])], 2)
