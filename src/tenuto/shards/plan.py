"""What all layers of a sharded cache share: how it is sharded, the present call, and the books."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tenuto.kv.offload.pool import Pool
from tenuto.shards.exchange import Exchange
from tenuto.shards.policy import Placement
from tenuto.shards.schedule import Scheduler
from tenuto.shards.selector import Selector
from tenuto.tiers.codec import PageCodec

__all__ = ["Plan", "ReadTotals", "Step"]

RAW = PageCodec()


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How a cache is sharded.

    Attributes:
        placement: of tokens on shards; shards: how many; selector: which pages are read, None: all.
        measure: whether the attention mass that a selector drops is measured, which reads all keys (not with a
            schedule, which would fetch them).
        exchange: the way to the other ranks.
        schedule: which pages leave memory, None: none do; pool: the way to the tier they go to.
        codec: how full pages are held once all their tokens are older than the ``recent`` last ones of their row.
    """

    placement: Placement
    shards: int
    selector: Selector | None
    measure: bool
    exchange: Exchange
    schedule: Scheduler | None = None
    pool: Pool | None = None
    codec: PageCodec = RAW
    recent: int = 64

    @property
    def mine(self) -> range:
        """Shards that live on this rank."""
        return self.of(self.exchange.rank)

    def of(self, rank: int) -> range:
        """Shards that live on a rank."""
        return range(rank, self.shards, self.exchange.ranks)

    @property
    def routed(self) -> bool:
        """Whether routers are listened to."""
        return self.placement.routed or (self.selector is not None and self.selector.routed)


@dataclass(slots=True)
class ReadTotals:
    """What decoding steps read, of all rows and layers.

    Attributes:
        tokens_read, tokens_held, pages_read, pages_held: added up; the new token is not among them.
        pages_deleted, tokens_deleted: by a lossy schedule, of all shards.
        dropped: attention mass left out, one mean over rows and heads per layer and step, where it is measured.
    """

    tokens_read: int = 0
    tokens_held: int = 0
    pages_read: int = 0
    pages_held: int = 0
    pages_deleted: int = 0
    tokens_deleted: int = 0
    dropped: list[float] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Step:
    """One call of the model.

    Attributes:
        valid: ``[rows, new]`` bool, False for padding, of all rows that are sharded here; first: of this rank's.
        batch: this rank's rows.
    """

    valid: torch.Tensor
    first: int
    batch: int

    @property
    def new(self) -> int:
        """Tokens per row, padding counted."""
        return self.valid.shape[1]
