"""The contract of a placement: which shard holds a token's keys and values.

A shard is a part of the cache; shards live on ranks. Tokens are placed once, when they come, and stay. Every rank
places every token by the same rule from the same numbers, so that all know where everything is without a message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from tenuto.errors import PolicyError

__all__ = ["Arrivals", "Placement", "Places", "capped"]


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """New tokens of one row, in one layer, oldest first; padding is left out.

    Attributes:
        numbers: of the tokens in the row ``[new]`` int64; keys: after RoPE ``[kv_heads, new, head_dim]``.
        experts: the expert that the router of the layer before liked best ``[new]`` int64; None: no such router.
        loads: tokens of the row on each shard so far ``[shards]`` int64.
    """

    numbers: torch.Tensor
    keys: torch.Tensor
    experts: torch.Tensor | None
    loads: torch.Tensor

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.loads)


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where tokens go.

    Attributes:
        shard: ``[new]`` int64; kind: tokens of different kinds share no page ``[new]`` int64, below ``kinds``.
        memory: what the placement wants to be given with the row's next tokens.
    """

    shard: torch.Tensor
    kind: torch.Tensor
    memory: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement(ABC):
    """Which shard holds a token?

    Attributes:
        page: tokens per page: what a selector reads or leaves out together.

    Raises:
        PolicyError: a number that is not allowed.
    """

    page: int = 16

    def __post_init__(self) -> None:
        if self.page < 1:
            raise PolicyError(f"{type(self).__name__}: page={self.page}. Pages hold at least 1 token.")

    @property
    def kinds(self) -> int:
        """How many kinds of tokens are kept in pages of their own."""
        return 1

    @property
    def routed(self) -> bool:
        """Whether the router's choices are asked for."""
        return False

    @abstractmethod
    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        """Shards of new tokens; ``memory`` is what the last call gave for this row, None at first."""


def capped(home: torch.Tensor, loads: torch.Tensor, slack: float) -> torch.Tensor:
    """Shards ``[new]`` of tokens that want ``home [new]``, where no shard may hold more than ``slack`` times its share.

    First come, first served; what does not fit goes to the shards with the most room. ``loads [shards]`` are the
    tokens held before.
    """
    shards = len(loads)
    most = max(-(-int((int(loads.sum()) + len(home)) * slack) // shards), 1)
    most = max(most, -(-(int(loads.sum()) + len(home)) // shards))
    wanted = torch.nn.functional.one_hot(home, shards)
    order = (wanted.cumsum(0) * wanted).sum(-1) + loads[home]  # how full the shard is with this token
    over = order > most
    after = loads + wanted[~over].sum(0)
    room = (most - after).clamp(min=0)
    by_room = room.argsort(descending=True, stable=True)
    chosen = home.clone()
    chosen[over] = by_room.repeat_interleave(room[by_room])[: int(over.sum())]
    return chosen
