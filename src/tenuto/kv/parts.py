"""The blocks of a KV policy: one abstract contract per question. Trivial answers are in :mod:`tenuto.kv.trivial`.

Blocks are frozen and hold no state: running state belongs to the entries and moves with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from tenuto.kv.view import Code, Entries, Scored, View

__all__ = [
    "ALL",
    "Allocator",
    "Codec",
    "Positioner",
    "Reducer",
    "Scorer",
    "Selector",
    "Trigger",
]

ALL = 2**31 - 1
"""``probes`` of a scorer that wants the queries of every token since the last compression."""


class Trigger(ABC):
    """When is a cache compressed?"""

    __slots__ = ()

    @abstractmethod
    def room(self, moment: Literal["prefill", "decode"], since: int, over: bool) -> int | None:
        """Entries per head (on average) to leave free below the budget, or None for no compression now.

        Asked at the end of a prefill (every forward call of more than one token; at the end of all chunks where the
        engine is told of them), and before each decoding step.

        Args:
            moment: which of the two.
            since: tokens since the last compression.
            over: whether the coming step would pass the budget.
        """


class Scorer(ABC):
    """How valuable is an entry?

    Class attributes or fields: ``probes``, how many of the last queries the view must hold (0: none; ``ALL``);
    ``features``, floats of running state per entry; ``observes``, whether :meth:`observe` sees the attention of every
    forward call ("calls"), only of the calls of :meth:`replay` ("replay"), or of none ("no"). Class attribute
    ``alone``: whether a score depends on nothing but the number, weight and state of its entry; while decoding, the
    heads of all rows are then one view, which has no queries, and no channels in its keys and values.
    """

    __slots__ = ()
    alone: ClassVar[bool] = False
    probes: int = 0
    features: int = 0
    observes: ClassVar[Literal["no", "calls", "replay"]] = "no"

    @abstractmethod
    def score(self, view: View) -> torch.Tensor:
        """Scores ``[kv_heads, entries]``, higher is more worth keeping; what is under padding does not matter."""

    def observe(self, state: torch.Tensor, attention: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The running state after some queries have attended; it starts at zero.

        While decoding, what an entry gets may depend on its own attention only: entries come in blocks, with one more
        dimension before the others in ``state`` and ``attention``.

        Args:
            state: ``[..., entries, features]`` of one row and KV head.
            attention: ``[..., group, queries, entries]`` float32, rows sum to one; 0 where a query does not see an
                entry.
            index: numbers of the queries in the sequence, ``[queries]`` int64.
        """
        return state

    def replay(self, tokens: torch.Tensor) -> Sequence[torch.Tensor]:
        """Token ids to run over the full cache at the end of a prefill, only to be observed; ``tokens [seen]`` is the
        row so far. Each is one forward call; none by default."""
        return ()


class Allocator(ABC):
    """How many entries per layer and head?

    Class attribute ``joint``: True if the scores of all layers are needed before any layer is final. Otherwise a layer
    is compressed as soon as it has attended, so that a prefill never holds more than one layer in full. ``even``: True
    if every head gets the same part of ``total``, rounded down.
    """

    __slots__ = ()
    joint: ClassVar[bool] = False
    even: ClassVar[bool] = False

    @abstractmethod
    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        """Entries to keep, ``[kv_heads]`` int64 per layer, protected ones included.

        The engine raises a count to what is protected and lowers it to what is held. ``layers`` is all of them if
        ``joint``, else one; ``total`` is what they may hold together, all KV heads counted. An allocator that gives one
        layer more than another without looking at scores (from ``view.layer`` and ``view.layers``) need not be joint:
        it sees each layer with an even share, and its counts must add up to no more over all layers.
        """


class Selector(ABC):
    """Which entries? ``sinks`` and ``window`` are constraints: the first and the last entries, always kept.

    Class attributes: ``classes``, precision classes it tells apart (1: kept or not); ``alone``, whether it needs
    nothing but scores and the numbers of entries (see :class:`Scorer`).
    """

    __slots__ = ()
    sinks: int
    window: int
    classes: ClassVar[int] = 1
    alone: ClassVar[bool] = False

    @abstractmethod
    def select(self, scored: Scored, counts: torch.Tensor) -> torch.Tensor:
        """0 for an entry that is lost, 1 for a kept one, above 1 for a kept one in a lower precision class (read by
        the codec), ``[kv_heads, entries]`` uint8; exactly ``counts [kv_heads]`` are kept."""

    def protected(self, view: View) -> torch.Tensor:
        """Sinks and window, ``[kv_heads, entries]`` bool."""
        order = (view.held & (view.index >= 0)).cumsum(-1)
        first = (order > 0) & (order <= self.sinks) & view.held
        last = torch.arange(view.held.shape[1], device=view.held.device) >= view.held.shape[1] - self.window
        return first | (last & view.held)


class Reducer(ABC):
    """What becomes of the losers? Sees only entries in full precision: encoded ones that lose are dropped.

    Class attributes: ``extra``, entries it adds per head, for which the engine leaves room; ``weighs``, whether
    entries it makes may stand for more than one token.
    """

    __slots__ = ()
    extra: ClassVar[int] = 0
    weighs: ClassVar[bool] = True

    @abstractmethod
    def reduce(self, view: View, kept: torch.Tensor) -> list[Entries]:
        """The new entries of each KV head, sorted by index; ``kept [kv_heads, entries]`` bool.

        Weights must add up: a merged entry's weight is the sum of those it stands for. None of a head's weights: one
        each. The state is carried by ``view.state``.
        """


class Codec(ABC):
    """How is a kept entry stored? Entries are encoded once, from originals, oldest first, a whole page at a time.

    Fields: ``page``, entries per encoded page; ``residual``, the newest entries that stay in full precision;
    ``probes``, how many of the last queries :meth:`encode` wants (0: none; ``ALL``); where it wants some, entries are
    encoded at a compression, and while decoding only if the trigger compresses there too. Class attribute ``shared``:
    name of the tensor of a code that holds what entries encoded together share.
    """

    __slots__ = ()
    page: int
    residual: int
    probes: int = 0
    shared: ClassVar[str]

    @abstractmethod
    def check(self, head_dim: int) -> None:
        """Raise PolicyError if heads of this size cannot be encoded."""

    @abstractmethod
    def entry_bytes(self, head_dim: int, itemsize: int) -> float:
        """Bytes one encoded entry takes in the tensors of a code, an upper bound, without what it shares: it plans
        ``bytes=`` budgets. ``itemsize`` is that of the model's dtype."""

    @abstractmethod
    def page_bytes(self, head_dim: int, itemsize: int) -> float:
        """Bytes that a page of entries encoded together shares, an upper bound; they stay while any entry stays."""

    @abstractmethod
    def encode(
        self, keys: torch.Tensor, values: torch.Tensor, *, classes: torch.Tensor | None, queries: torch.Tensor | None
    ) -> Code:
        """Encode ``[entries, head_dim]`` keys and values; entries is a multiple of ``page``.

        Args:
            classes: precision class per entry ``[entries]`` uint8, None if the selector tells none apart.
            queries: probe queries of this head's group ``[group, probes, head_dim]``, None if ``probes`` is 0.
        """

    @abstractmethod
    def keys(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Decoded keys ``[stop - start, head_dim]`` of one run of entries."""

    @abstractmethod
    def values(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Decoded values, as :meth:`keys`."""

    def logits(self, codes: Sequence[Code], query: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Products of queries with one run of keys, for several heads that hold as many encoded entries each.

        A codec that can compute them without decoding does so here. ``query [heads, queries, head_dim]``, one code
        per head; gives ``[heads, queries, stop - start]``.
        """
        pairs = zip(codes, query, strict=True)
        return torch.stack([mine @ self.keys(code, start, stop, query.dtype).T for code, mine in pairs])

    def mix(self, codes: Sequence[Code], attention: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """One run of values weighted by ``attention [heads, queries, stop - start]``, as :meth:`logits`."""
        pairs = zip(codes, attention, strict=True)
        return torch.stack([mine @ self.values(code, start, stop, attention.dtype) for code, mine in pairs])

    @abstractmethod
    def take(self, code: Code, index: torch.Tensor) -> Code:
        """The code of some entries (``index`` sorted int64): decodes to exactly what they decoded to before."""

    @abstractmethod
    def join(self, first: Code, second: Code) -> Code:
        """The code of both, one after the other: decodes to exactly what they decoded to before."""


class Positioner(ABC):
    """At which RoPE position is a kept key attended?

    Class attribute or field: ``turned``, how many keys it turns, the first ones of every head (0: none).
    """

    __slots__ = ()
    turned: int = 0

    @abstractmethod
    def shift(self, view: View) -> torch.Tensor:
        """Positions to turn the first keys by, ``[kv_heads, turned]`` int64. Asked after every compression where every
        head holds more than ``turned`` entries; the view has each key at its own position."""
