"""ShortConv: a short causal convolution on keys and values, before any attention; by itself a cheap baseline.

Depthwise, each channel of its own, over a token and the few before it: token shift (RWKV,
https://arxiv.org/abs/2305.13048) with more than one step, as in Primer's attention (https://arxiv.org/abs/2109.08668).
It is added to the raw keys and values, before norm and rotation, and starts at zero. A key then knows the token before
it, so that one layer can look up what followed a token earlier (the smeared keys of Olsson et al. 2022,
https://arxiv.org/abs/2209.11895), which small models otherwise learn late.

``short_conv`` alone attends in full, and stores as many keys and values as the plain model;
``short_conv+mka:window=64`` hands its keys and values to another attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, cast

import torch
from torch import nn

from tenuto.attention.full import FullHeads, FullState, masked
from tenuto.attention.policy import Attention, AttentionCall, Heads, Paper, Shape, State
from tenuto.errors import PolicyError
from tenuto.method import Method

__all__ = ["ShortConv", "ShortConvHeads", "ShortConvState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv(Attention):
    """Convolution on keys and values.

    Attributes:
        kernel: tokens it covers, the token itself included.
        then: the attention that gets them, None for full attention; in text it follows a plus.

    Raises:
        PolicyError: kernel below 2.
    """

    kernel: int = 4
    then: Attention | None = None

    baseline: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Primer: Searching for Efficient Transformers for Language Modeling",
        "So, Mańke, Liu, Dai, Shazeer, Le",
        2021,
        "https://arxiv.org/abs/2109.08668",
    )
    linked: ClassVar[str] = "then"
    trials: ClassVar[tuple[str, ...]] = (
        "short_conv",
        "short_conv:kernel=3+mka:window=8,sinks=1,chunk=4,recall=2,horizons=0",
    )

    def __post_init__(self) -> None:
        if self.kernel < 2:
            raise PolicyError(f"{self} is not allowed: kernel is 2 or more.")

    @property
    def identity(self) -> bool:
        """See :class:`Attention`: where the attention that follows is."""
        return self.then is None or self.then.identity

    @property
    def whole(self) -> bool:
        """See :class:`Attention`: where no other attention follows."""
        return self.then is None

    @property
    def attending(self) -> Attention:
        """See :class:`Attention`."""
        return self if self.then is None else self.then.attending

    def plus(self, then: Method) -> Method:
        """See :class:`Attention`: it goes to the last of several."""
        after = then if self.then is None else self.then.plus(then)
        return replace(self, then=cast(Attention, after))

    @property
    def chain(self) -> tuple[Method, ...]:
        """This, then the attention that it feeds."""
        return (self,) if self.then is None else (self, *self.then.chain)

    def build(self, shape: Shape) -> ShortConvHeads:
        """The module for one layer."""
        return ShortConvHeads(self, shape)


@dataclass(slots=True, eq=False)
class ShortConvState(State):
    """The last raw keys and values, and what the attention that they go to keeps.

    Attributes:
        tail: ``[batch, kv_heads, kernel - 1, 2 head_dim]``, keys then values, zero before a row's first token.
        then: of the attention.
    """

    then: State = field(default_factory=FullState)
    tail: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> None:
        """See :class:`State`."""
        State.select(self, rows)
        self.then.select(rows)

    def copied(self) -> Self:
        """See :class:`State`."""
        other = State.copied(self)
        other.then = self.then.copied()
        return other

    def held(self) -> dict[str, int]:
        """See :class:`State`."""
        total = State.held(self)
        for tier, size in self.then.held().items():
            total[tier] = total.get(tier, 0) + size
        return total


class ShortConvHeads(Heads):
    """The convolution of one layer.

    Attributes:
        taps: weight of the token ``kernel - 1`` back, ..., of the token itself
            ``[kernel, kv_heads, 1, 2 head_dim]``; zero until trained.
        then: the attention of the layer.
    """

    def __init__(self, attention: ShortConv, shape: Shape) -> None:
        super().__init__()
        self.shape, self.kernel = shape, attention.kernel
        self.taps = nn.Parameter(torch.zeros(self.kernel, shape.kv_heads, 1, 2 * shape.head_dim))
        self.then: Heads = FullHeads(shape) if attention.then is None else attention.then.build(shape)

    @property
    def attending(self) -> Heads:
        """See :class:`Heads`."""
        return self.then.attending

    def state(self) -> ShortConvState:
        """An empty state."""
        return ShortConvState(then=self.then.state())

    def forward(self, call: AttentionCall, state: State | None) -> torch.Tensor:
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
        k, v = both.chunk(2, -1)
        out: torch.Tensor = self.then(replace(call, k=k, v=v), state.then if state else None)
        if state is not None:
            state.tail = wide[:, :, tokens:].clone()
            state.then.seen, state.then.count = call.before + tokens, call.number[:, -1] + 1
        return out

    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """That of the attention, and ``2 kv_heads head_dim itemsize (kernel - 1)``."""
        own = 2 * self.shape.kv_heads * self.shape.head_dim * itemsize * (self.kernel - 1)
        whole = self.then.formula(tokens, itemsize)
        return whole | {"device": whole["device"] + own}
