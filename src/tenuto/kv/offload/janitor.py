"""Discards pages that nobody holds any more, from a thread of its own.

A page dies when Python collects its last holder, which may happen anywhere, also inside a tier that holds its lock. So
a dying page only puts its name into a queue that allows this (``queue.SimpleQueue``), and this thread tells the tier.
Pages of a process that ends before that stay in tiers that outlive it, until these drop them for room.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import SimpleQueue

from tenuto.errors import StoreError
from tenuto.tiers.tier import Tier

__all__ = ["discard_later", "start"]

_dead: SimpleQueue[tuple[Tier, str]] = SimpleQueue()
_started = threading.Lock()


def start() -> None:
    """Have the thread run; nothing happens if it does."""
    if _started.acquire(blocking=False):
        threading.Thread(target=_work, name="tenuto-janitor", daemon=True).start()


def discard_later(tier: Tier, name: str) -> None:
    """Have a page discarded."""
    _dead.put((tier, name))


def _work() -> None:
    while True:
        tier, name = _dead.get()
        with suppress(
            StoreError, OSError, ValueError
        ):  # a tier that cannot be reached, or is closed, forgets by itself
            tier.discard(name)
        del tier
