"""Scheduling: which pages leave memory for a lower tier when there is no room for all.

PiKV's list of schedulers, each as a utility of a page: the pages of the lowest utility are demoted, and come back when
they are read. Nothing is deleted, so what is read is exact whatever the utility; a bad one only fetches more.
With ``lossy=True`` they are deleted, as PiKV's schedulers do: that changes the output, and has to be asked for.

Every rank computes the same utilities from the same page tables, so all know which pages are below.

Source: Liu et al. 2025, PiKV: KV Cache Management System for Mixture of Experts, https://arxiv.org/abs/2508.06526
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tenuto.errors import PolicyError, closest

__all__ = ["UTILITIES", "Schedule", "Use"]


@dataclass(slots=True, eq=False)
class Use:
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
SINKS, RECENT = 4, 64
"""First and last tokens that StreamingLLM and DuoAttention keep."""


def _order(x: torch.Tensor) -> torch.Tensor:
    """Ranks in [0, 1], so that numbers of different units can be added."""
    return x.argsort(stable=True).argsort(stable=True).float() / max(len(x) - 1, 1)


def _edges(use: Use) -> torch.Tensor:
    newest = use.newest.max() if len(use.newest) else torch.zeros(())
    return ((use.oldest < SINKS) | (use.newest > newest - RECENT)).float()


UTILITIES: dict[str, Callable[[Use], torch.Tensor]] = {
    "h2o": lambda use: use.mass,
    "streaming_llm": lambda use: use.newest + 1e9 * (use.oldest < SINKS),
    "quest": lambda use: use.share,
    "flexgen": lambda use: -use.oldest,
    "lru": lambda use: use.last,
    "lru+": lambda use: _order(use.last) + 0.5 * _order(use.count),
    "adakv": lambda use: 0.5 * _order(use.mass) + 0.3 * _order(use.last) + 0.2 * _order(use.count),
    "duo": lambda use: _order(use.mass) + 2 * _edges(use),
}
"""What a page is worth, by the name PiKV gives the scheduler. ``flexgen``: a plan made in advance, the first tokens
stay. ``quest``: the selector's score for the last query. ``adakv``, ``duo``: mixtures with fixed weights, which PiKV
adapts or learns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Keep some of each shard's full pages in memory.

    Attributes:
        resident: share of a shard's full pages that stay in memory, in (0, 1].
        utility: a name of ``UTILITIES``.
        slack: pages above that which are let be, so that memory is not rearranged at every step.
        lossy: delete instead of demoting, in decoding steps; never the first 4 and last 64 tokens.

    Raises:
        PolicyError: a number or name that is not allowed.
    """

    resident: float = 0.5
    utility: str = "lru"
    slack: int = 4
    lossy: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.resident <= 1 or self.slack < 0:
            raise PolicyError(
                f"Schedule: resident={self.resident:g}, slack={self.slack}. "
                "resident must be in (0, 1], slack 0 or more."
            )
        if self.utility not in UTILITIES:
            raise PolicyError(f"Schedule: utility={self.utility!r} is unknown.{closest(self.utility, UTILITIES)}")

    @property
    def estimated(self) -> bool:
        """Whether the utility goes by attention as a selector estimates it."""
        return self.utility in ("h2o", "quest", "adakv", "duo")

    def demoted(self, use: Use, held: torch.Tensor, pages: int) -> torch.Tensor:
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
            there = there[_edges(use)[there] == 0]
        worth = UTILITIES[self.utility](use)[there]
        return there[worth.argsort(stable=True)[:more]].sort().values
