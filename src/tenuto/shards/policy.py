"""The contract of the shards family: which shard holds a token's keys and values, and which pages a step reads.

A :class:`ShardMethod` is a published method; it composes a :class:`Sharding` of two parts, a :class:`Placement` and a
:class:`~tenuto.shards.selector.Selector`. A part that is a method by itself is both.

A shard is a part of the cache; shards live on ranks. Tokens are placed once, when they come, and stay. Every rank
places every token by the same rule from the same numbers, so that all know where everything is without a message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch

from tenuto.errors import PolicyError
from tenuto.method import Method
from tenuto.paper import Claim, Paper

if TYPE_CHECKING:
    from tenuto.calibration import Profile
    from tenuto.shards.selector import Selector

__all__ = [
    "Arrivals",
    "Claim",
    "Joint",
    "Paper",
    "Placement",
    "Places",
    "ShardMethod",
    "Sharding",
    "capped",
]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """What a method chooses.

    Attributes:
        placement: which shard holds a token; None: it is left open.
        selector: which pages a decoding step reads; None: all, and the output is exact.
    """

    placement: Placement | None = None
    selector: Selector | None = None


class ShardMethod(Method, ABC):
    """A published method for caches on shards; ``first+second`` lets the second choose what the first leaves open.

    Class attribute: ``default``, whether a job that names no method takes this one.
    """

    __slots__ = ()
    default: ClassVar[bool] = False
    follows: ClassVar[bool] = True

    @property
    def profiled(self) -> bool:
        """Whether a profile is needed (``tenuto calibrate shards``)."""
        return False

    @abstractmethod
    def compose(self, profile: Profile | None = None) -> Sharding:
        """The method's parts.

        Raises:
            CalibrationError: the method needs a profile, and none was given.
        """

    def plus(self, then: Method) -> Method:
        """Both: ``then`` chooses what this leaves open."""
        return Joint((self, cast(ShardMethod, then)))


@dataclass(frozen=True, slots=True)
class Joint(ShardMethod):
    """Several methods as one, written ``first+second``: of each part, the first that chooses it counts.

    Attributes:
        parts: the methods.

    Raises:
        PolicyError: a method chooses nothing that those before it leave open.
    """

    parts: tuple[ShardMethod, ...]

    def __post_init__(self) -> None:
        if self.profiled:
            return  # which parts there are is known without a profile for all but those
        self.compose()

    @property
    def profiled(self) -> bool:
        """See :class:`ShardMethod`."""
        return any(part.profiled for part in self.parts)

    def plus(self, then: Method) -> Method:
        """One more."""
        return Joint((*self.parts, cast(ShardMethod, then)))

    @property
    def chain(self) -> tuple[Method, ...]:
        """The methods joined."""
        return self.parts

    def compose(self, profile: Profile | None = None) -> Sharding:
        placement, selector = None, None
        for part in self.parts:
            own = part.compose(profile)
            if not (own.placement and placement is None) and not (own.selector and selector is None):
                raise PolicyError(f"{part} chooses nothing that the methods before it leave open. Leave it out.")
            placement, selector = placement or own.placement, selector or own.selector
        return Sharding(placement=placement, selector=selector)
