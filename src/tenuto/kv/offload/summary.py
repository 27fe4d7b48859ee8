"""What left memory and what it cost to read it, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenuto.kv.offload.paged import Paged
from tenuto.kv.offload.pool import Pool

__all__ = ["summary"]

PATIENCE = 1.0
"""Seconds to wait for pages that were left out, so that their mass is known."""


def summary(pool: Pool, layers: Sequence[Paged | None]) -> dict[str, Any]:
    """Of one cache: bytes of keys and values in the tier, each page counted once, and the books.

    ``dropped_mass`` is the attention mass left out, mean over decoding steps, layers and rows, in [0, 1].
    """
    pool.skips.account(pool.books, PATIENCE)
    pages = {page for layer in layers if layer is not None for row in layer.rows for page in row.pages}
    books = pool.books
    return {
        "bytes_offloaded": sum(page.nbytes for page in pages),
        "pages_read": books.pages_read,
        "hits": books.hits,
        "pages_fetched": books.pages_fetched,
        "pages_skipped": books.pages_skipped,
        "fetches_failed": books.fetches_failed,
        "stall_s": books.stall_s,
        "dropped_mass": books.dropped / books.reads if books.reads else 0.0,
        "mass_unknown": books.unknown,
    }
