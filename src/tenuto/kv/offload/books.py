"""What reading from pages has cost so far."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReadCounts"]


@dataclass(slots=True)
class ReadCounts:
    """Of one cache and its forks.

    Attributes:
        pages_read: pages that decoding steps asked for, once per layer and row; hits: those that were in memory then.
        pages_fetched: pages that came from the tier, whoever asked; fetches: round trips that brought them.
        pages_skipped: pages left out because they had not come in time; fetches_failed: pages the tier did not give.
        stall_s: seconds that attention waited for pages.
        reads: decoding steps of a layer and row; dropped: attention mass left out in them, added up.
        unknown: pages left out whose mass is not known because they never came.
    """

    pages_read: int = 0
    hits: int = 0
    pages_fetched: int = 0
    fetches: int = 0
    pages_skipped: int = 0
    fetches_failed: int = 0
    stall_s: float = 0.0
    reads: int = 0
    dropped: float = 0.0
    unknown: int = 0
