"""The contract of a scheduler: which pages leave memory for a lower tier when there is no room for all.

Every rank computes the same numbers from the same page tables, so all know which pages are below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

__all__ = ["DECAY", "SINKS", "PageUse", "Scheduler", "edges", "order"]


@dataclass(slots=True, eq=False)
class PageUse:
    """How pages of one row and layer were used, ``[pages]`` float32 each.

    Attributes:
        step: decoding steps so far; last: the step when each page was read last, or made; count: how often it was read.
        mass: the selector's estimate of the attention each page gets, decayed by ``DECAY`` per step; share: of the last
            step alone.
        newest, oldest: numbers of the last and first token.
    """

    step: int
    last: torch.Tensor
    count: torch.Tensor
    mass: torch.Tensor
    share: torch.Tensor
    newest: torch.Tensor
    oldest: torch.Tensor


DECAY = 0.95
"""Of the attention a page got, per decoding step."""

SINKS, RECENT = 4, 64
"""First and last tokens that a lossy scheduler never deletes."""


def order(x: torch.Tensor) -> torch.Tensor:
    """Ranks in [0, 1], so that numbers of different units can be added."""
    return x.argsort(stable=True).argsort(stable=True).float() / max(len(x) - 1, 1)


def edges(use: PageUse) -> torch.Tensor:
    """1 for the pages with one of the first or last tokens of the row, 0 for others ``[pages]``."""
    newest = use.newest.max() if len(use.newest) else torch.zeros(())
    return ((use.oldest < SINKS) | (use.newest > newest - RECENT)).float()


class Scheduler(ABC):
    """Which full pages stay in memory? A frozen, keyword-only dataclass of numbers.

    Fields: ``resident``, the share of a shard's full pages that stay, in (0, 1]; ``slack``, pages above that which are
    let be, so that memory is not rearranged at every step; ``lossy``, delete instead of demoting, in decoding steps;
    never the first and last tokens.
    """

    __slots__ = ()
    resident: float
    slack: int
    lossy: bool

    @property
    def estimated(self) -> bool:
        """Whether it goes by attention as a selector estimates it."""
        return False

    @abstractmethod
    def worth(self, use: PageUse) -> torch.Tensor:
        """What each page is worth ``[pages]``; the lowest leave first."""

    def demoted(self, use: PageUse, held: torch.Tensor, pages: int) -> torch.Tensor:
        """Which pages leave memory, their numbers; of the full ones in memory, ``held [pages]`` bool.

        Args:
            pages: full pages of the shard, in memory, below or deleted.
        """
        most = max(int(self.resident * pages), 1)
        there = held.nonzero()[:, 0]
        if len(there) <= most + self.slack:
            return there[:0]
        more = len(there) - most
        if self.lossy:
            there = there[edges(use)[there] == 0]
        return there[self.worth(use)[there].argsort(stable=True)[:more]].sort().values
