"""ShortConv: a short causal convolution on keys and values; the cheap baseline of anything that mixes them.

Depthwise, each channel of its own, over a token and the few before it: token shift (RWKV,
https://arxiv.org/abs/2305.13048) with more than one step, as in Primer's attention (https://arxiv.org/abs/2109.08668).
It is added to the raw keys and values, before norm and rotation, and starts at zero. It stores as many keys and values
as the plain model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tenuto.attention.full import FullState, causal, masked
from tenuto.attention.policy import Attention, Call, Heads, Shape, State
from tenuto.errors import PolicyError

__all__ = ["ShortConv", "ShortConvHeads", "ShortConvState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv(Attention):
    """Convolution on keys and values.

    Attributes:
        kernel: tokens it covers, the token itself included.

    Raises:
        PolicyError: kernel below 2.
    """

    kernel: int = 4

    name: ClassVar[str] = "short_conv"
    identity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kernel < 2:
            raise PolicyError(f"{self} is not allowed: kernel is 2 or more.")

    def build(self, shape: Shape) -> ShortConvHeads:
        """The module for one layer."""
        return ShortConvHeads(self, shape)


@dataclass(slots=True, eq=False)
class ShortConvState(FullState):
    """Keys after rotation and values, and the last raw ones.

    Attributes:
        tail: ``[batch, kv_heads, kernel - 1, 2 head_dim]``, keys then values, zero before a row's first token.
    """

    tail: torch.Tensor | None = None


class ShortConvHeads(Heads):
    """The convolution of one layer.

    Attributes:
        taps: weight of the token ``kernel - 1`` back, ..., of the token itself
            ``[kernel, kv_heads, 1, 2 head_dim]``; zero until trained.
    """

    def __init__(self, attention: ShortConv, shape: Shape) -> None:
        super().__init__()
        self.shape, self.kernel = shape, attention.kernel
        self.taps = nn.Parameter(torch.zeros(self.kernel, shape.kv_heads, 1, 2 * shape.head_dim))

    def state(self) -> ShortConvState:
        """An empty state."""
        return ShortConvState()

    def forward(self, call: Call, state: State | None) -> torch.Tensor:
        """See :class:`Heads`."""
        if state is not None and not isinstance(state, ShortConvState):
            raise TypeError("a state of another attention")
        both = masked(call)
        held = state.tail if state else None
        if held is None:
            held = both.new_zeros(*both.shape[:2], self.kernel - 1, both.shape[-1])
        wide, tokens = torch.cat([held, both], 2), both.shape[2]
        for place, tap in enumerate(self.taps):
            both = torch.addcmul(both, wide[:, :, place : place + tokens], tap)
        if state is not None:
            state.tail = wide[:, :, tokens:].clone()
        k, v = both.chunk(2, -1)
        return causal(call, k, v, state)

    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """``2 kv_heads head_dim itemsize (tokens + kernel - 1)``."""
        return {"device": 2 * self.shape.kv_heads * self.shape.head_dim * itemsize * (tokens + self.kernel - 1)}
