"""How pages are fetched before they are asked for, and what happens when one has not come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tenuto.errors import InputError

__all__ = ["Prefetch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Fetch the pages that later layers will probably read, while earlier layers compute.

    Attributes:
        miss: what attention does about a page that has not come: ``wait`` for it; ``best_effort``: go on without, and
            note the attention mass it would have had; ``timeout``: wait ``timeout`` seconds per layer, then the same.
        timeout: seconds, for ``timeout`` only.
        margin: pages fetched early, as a multiple of the pages that are read: predictions are not exact.
        ahead: layers between the input that predicts and the layer that reads; 0: as many as it takes to hide the
            tier's latency, measured while running.
        threads: fetches under way at once.

    Raises:
        InputError: a number that is not allowed.
    """

    miss: Literal["wait", "best_effort", "timeout"] = "wait"
    timeout: float = 0.01
    margin: float = 2.0
    ahead: int = 0
    threads: int = 16

    def __post_init__(self) -> None:
        if self.miss not in ("wait", "best_effort", "timeout"):
            raise InputError(f"miss={self.miss!r} is not allowed: give wait, best_effort or timeout.")
        if self.timeout < 0 or self.margin < 1 or self.ahead < 0 or self.threads < 1:
            raise InputError(
                f"timeout={self.timeout:g}, margin={self.margin:g}, ahead={self.ahead}, threads={self.threads}: "
                "timeout and ahead must be zero or more, margin and threads at least 1."
            )

    @property
    def patience(self) -> float:
        """Seconds to wait for pages, per layer."""
        return {"wait": math.inf, "best_effort": 0.0, "timeout": self.timeout}[self.miss]
