"""The contract of the KV family: which entries a cache keeps, and in which form.

A :class:`KVPolicy` is one choice per block of :mod:`tenuto.kv.parts`; a published method is a :class:`KVMethod`, a
frozen dataclass of numbers that composes one. The engine (:mod:`tenuto.kv.cache`) calls the blocks in one order:
trigger, score, allocate, select, reduce, encode; every layer and head of every batch row is decided by itself, from a
:class:`View` of that layer and row. A method's file imports all it needs from here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

from tenuto.errors import PolicyError
from tenuto.kv.index import Index, shared
from tenuto.kv.parts import ALL, Allocator, Codec, Positioner, Reducer, Scorer, Selector, Trigger
from tenuto.kv.trivial import Drop, Every, Original, PrefillEnd, Recency, TopK, Uniform
from tenuto.kv.view import Code, Entries, Scored, View
from tenuto.method import Method
from tenuto.paper import Claim, Paper

__all__ = [
    "ALL",
    "Allocator",
    "Claim",
    "Code",
    "Codec",
    "Combined",
    "Drop",
    "Entries",
    "Every",
    "Index",
    "KVMethod",
    "KVPolicy",
    "Original",
    "Paper",
    "Positioner",
    "PrefillEnd",
    "Recency",
    "Reducer",
    "Scored",
    "Scorer",
    "Selector",
    "TopK",
    "Trigger",
    "Uniform",
    "View",
    "shared",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPolicy:
    """One choice per block. Where a block is asked for, a method may be given too: it lends its own block of that kind.

    KVPolicy(scorer=Knorm(), allocator=AdaKV(), selector=TopK(sinks=4), codec=Kivi(bits=2))
    """

    trigger: Trigger = PrefillEnd()
    scorer: Scorer = Recency()
    allocator: Allocator = Uniform()
    selector: Selector = TopK()
    losers: Reducer = Drop()
    codec: Codec | None = None
    positioner: Positioner = Original()
    index: Index | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            given: Any = getattr(self, item.name)
            if isinstance(given, KVMethod):
                object.__setattr__(self, item.name, getattr(given.compose(), item.name))
        if self.codec is not None and self.positioner != Original():
            raise PolicyError("Encoded keys cannot be turned to other positions: leave out the codec or the positions.")
        if self.index is not None:
            self._check_index()

    def _check_index(self) -> None:
        allowed = {"index", "trigger"} | ({"selector"} if isinstance(self.selector, TopK) else set())
        if names := ", ".join(name for name in self.choices() if name not in allowed):
            raise PolicyError(
                f"With {type(self.index).__name__} nothing is evicted or encoded, old entries leave memory whole: "
                f"leave out the other choices ({names})."
            )

    def choices(self) -> dict[str, Any]:
        """The blocks that are not the trivial ones, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def floor(self) -> int:
        """Entries per head below which no budget can go: sinks, window, what the reducer adds or an index needs."""
        reserve = self.index.reserve + (self.selector.window == 0) if self.index else 0
        return self.selector.sinks + self.selector.window + self.losers.extra + reserve

    @property
    def thins(self) -> bool:
        """Whether the heads of all rows are compressed together while decoding, and nothing is computed of keys but
        where they are attended: the first ones, which are then always kept."""
        alone = self.scorer.alone and self.selector.alone and self.allocator.even and self.losers == Drop()
        whole = self.codec is None and self.index is None
        return alone and whole and self.selector.sinks >= self.positioner.turned

    @property
    def probes(self) -> int:
        """The last queries that must be remembered."""
        return max(self.scorer.probes, self.codec.probes if self.codec else 0)

    @property
    def decode_probes(self) -> int:
        """The same while decoding, where ALL is as many tokens as come between two compressions."""
        return self.probes if self.probes < ALL else self.trigger.room("decode", 0, True) or 0


class KVMethod(Method, ABC):
    """A published method for KV caches: a frozen, keyword-only dataclass of numbers; ``first+second`` combines.

    Class attributes: ``yardstick``, whether benches of other families measure it beside their methods; ``demo``, what
    `tenuto demo` shows of it, text to the fraction kept.
    """

    __slots__ = ()
    yardstick: ClassVar[bool] = False
    demo: ClassVar[Mapping[str, float]] = {}
    follows: ClassVar[bool] = True

    @abstractmethod
    def compose(self) -> KVPolicy:
        """The method's blocks."""

    def plus(self, then: Method) -> Method:
        """Both: ``then`` fills the blocks that this leaves open."""
        return Combined((self, cast(KVMethod, then)))


@dataclass(frozen=True, slots=True)
class Combined(KVMethod):
    """Several methods as one, written ``first+second``: a later one fills the blocks an earlier one leaves trivial.

    Raises:
        PolicyError: a method adds nothing to those before it.
    """

    parts: tuple[KVMethod, ...]

    def __post_init__(self) -> None:
        self.compose()

    def plus(self, then: Method) -> Method:
        """One more."""
        return Combined((*self.parts, cast(KVMethod, then)))

    @property
    def chain(self) -> tuple[Method, ...]:
        """The methods combined."""
        return self.parts

    def compose(self) -> KVPolicy:
        blocks: dict[str, Any] = {}
        for part in self.parts:
            mine = part.compose().choices()
            if not set(mine) - set(blocks):
                taken = ", ".join(mine) or "none"
                raise PolicyError(
                    f"{type(part).__name__} adds nothing to the methods before it, which already choose its blocks "
                    f"({taken}). Write it first, or leave it out."
                )
            blocks = mine | blocks
        return KVPolicy(**blocks)
