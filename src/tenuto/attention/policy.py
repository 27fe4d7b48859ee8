"""The contract of the attention family: what a layer does with its queries, keys and values, and what it keeps of them.

An :class:`Attention` is a frozen dataclass of numbers. :meth:`Attention.build` makes one :class:`Heads` per layer: an
``nn.Module`` with the learned parameters the method adds. ``Heads`` sees one :class:`AttentionCall` at a time and a
:class:`State` that carries everything from one call to the next, so one model serves many sequences, in training
(no state), in one call, in chunks and token by token, with the same result.

Padding: a row may begin with padding, and every token after its first real one counts as real. Tokens are numbered per
row from its first real one, so a padded row gives what it gives by itself.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
from torch import nn

from tenuto.errors import AttachError, PolicyError
from tenuto.method import Method
from tenuto.paper import Claim, Paper

__all__ = ["Attention", "AttentionCall", "Claim", "Heads", "Paper", "Rotate", "Shape", "State", "shares"]

Rotate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One attention layer of a model.

    Attributes:
        heads, kv_heads, head_dim: of queries, of keys and values, and channels of each.
        layer, layers: which one of how many; context: the most tokens the model is made for.
    """

    heads: int
    kv_heads: int
    head_dim: int
    layer: int
    layers: int
    context: int


@dataclass(slots=True, eq=False)
class State:
    """What one layer keeps between calls. Every tensor in a field has the batch as its first dimension.

    Attributes:
        seen: columns seen so far, padding included; count: real tokens so far ``[batch]`` int64, None before the first.
        shift: of the positions that a model is given against the tokens' numbers ``[batch]`` int64, None: not given.
    """

    seen: int = 0
    count: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be there several times. ``[rows]`` int64."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, torch.Tensor):
                setattr(self, item.name, value.index_select(0, rows.to(value.device)))

    def copied(self) -> Self:
        """A copy that goes on by itself."""
        other = copy.copy(self)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, torch.Tensor):
                setattr(other, item.name, value.clone())
        return other

    def held(self) -> dict[str, int]:
        """Bytes of keys, values and what was made of them, by tier: ``device`` and any below it."""
        tensors = (getattr(self, item.name) for item in fields(self) if item.name not in ("count", "shift"))
        return {"device": sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))}

    @property
    def croppable(self) -> bool:
        """Whether :meth:`crop` can forget columns."""
        return False

    def crop(self, columns: int) -> None:
        """Forget the last ``columns`` columns.

        Raises:
            AttachError: what was made of them cannot be taken back.
        """
        if columns:
            raise AttachError(
                f"The last {columns} tokens cannot be taken out of a {type(self).__name__}: its summaries hold them. "
                "Use greedy, sampled or beam decoding, not assisted decoding, or start from a new cache."
            )


@dataclass(slots=True, eq=False, kw_only=True)
class AttentionCall:
    """One call of one layer.

    Attributes:
        q, k, v: as projected, before normalisation and rotation, ``[batch, heads, tokens, head_dim]`` and
            ``[batch, kv_heads, tokens, head_dim]``.
        number: of each token in its row, 0 for the first real one, negative for padding ``[batch, tokens]`` int64.
        before: columns of earlier calls.
        normalise: applies the model's query and key norms, ``(q, k) -> (q, k)``; the identity where it has none.
        rotate: rotary embedding at given numbers, ``(x [batch, heads, tokens, head_dim], at [batch, tokens]) -> x``.
        scale: of logits; dropout: of attention weights, above 0 only in training.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    number: torch.Tensor
    before: int
    normalise: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    rotate: Rotate
    scale: float
    dropout: float = 0.0

    @property
    def real(self) -> torch.Tensor:
        """Which tokens are no padding ``[batch, tokens]`` bool."""
        return self.number >= 0


class Heads(nn.Module, ABC):
    """The attention of one layer, between its projections: built by :meth:`Attention.build`.

    Attributes:
        usage: when a dict, ``forward`` adds to it how much attention each level gets: level -> sum over rows and real
            tokens of the share of each head ``[heads]``, and ``"tokens"`` -> how many they are.
    """

    usage: dict[str, torch.Tensor] | None = None

    @property
    def attending(self) -> Heads:
        """Which heads attend, and count :attr:`usage`: these, unless they hand their keys and values to others."""
        return self

    @abstractmethod
    def state(self) -> State:
        """An empty state."""

    @abstractmethod
    def forward(self, call: AttentionCall, state: State | None) -> torch.Tensor:
        """The output of the heads ``[batch, heads, tokens, head_dim]``, and ``state`` brought up to date in place.

        Without a state the call is a whole sequence, and autograd goes through all of it. ``state.seen`` and
        ``state.count`` are brought up to date by the caller.
        """

    @abstractmethod
    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """Bytes that a state holds for one row of so many tokens, by tier, in closed form: equal to ``State.held``."""


def shares(usage: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """The mean share of attention per level and head, from :attr:`Heads.usage`."""
    tokens = usage["tokens"]
    return {level: (total / tokens).tolist() for level, total in usage.items() if level != "tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Method, ABC):
    """An attention with its numbers; ``first+second`` hands the keys and values of the first to the second.

    Raises:
        PolicyError: a number is out of its range.
    """

    follows: ClassVar[bool] = True

    @property
    def identity(self) -> bool:
        """Whether a model keeps its outputs exactly when it is retrofitted, until the added parameters are trained."""
        return False

    @abstractmethod
    def build(self, shape: Shape) -> Heads:
        """The module for one layer.

        Raises:
            PolicyError: the numbers do not fit the layer, for example a window longer than the model's context.
        """

    @property
    def attending(self) -> Attention:
        """Which attention attends: this, unless it hands its keys and values to another."""
        return self

    @property
    def whole(self) -> bool:
        """Whether every token attends to all before it."""
        return False

    @property
    def period(self) -> int:
        """Tokens from skip to skip of a pattern that repeats, 0 for any other."""
        return 0

    def plus(self, then: Method) -> Method:
        """This, and then another attention on the keys and values it makes.

        Raises:
            PolicyError: it attends by itself.
        """
        raise PolicyError(f"{self} attends by itself, so {then} cannot follow it. Name one of them.")
