"""Pages that reads left out, and the attention mass they would have had."""

from __future__ import annotations

from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch

from tenuto.kv.offload.books import ReadCounts
from tenuto.kv.offload.read import mass

__all__ = ["Skip", "Skips"]


@dataclass(frozen=True, slots=True, eq=False)
class Skip:
    """One read of one row that left pages out.

    Attributes:
        query: ``[heads, head_dim]``; lse: log of the sum of exponentials of what was read ``[heads]``.
        fetches: of the pages left out; scaling, softcap: of the layer's logits.
    """

    query: torch.Tensor
    lse: torch.Tensor
    fetches: list[Future[tuple[torch.Tensor, torch.Tensor]]]
    scaling: float
    softcap: float | None


class Skips:
    """Reads whose left-out pages have not come yet; the mass is computed from their exact keys once they have."""

    def __init__(self) -> None:
        self.open: list[Skip] = []

    def account(self, books: ReadCounts, patience: float = 0.0) -> None:
        """Note what can be known; wait so many seconds for each read's pages."""
        left = []
        for skip in self.open:
            if wait(skip.fetches, patience).not_done:
                left.append(skip)
                continue
            come = [fetch.result()[0] for fetch in skip.fetches if fetch.exception() is None]
            books.unknown += len(skip.fetches) - len(come)
            if come:
                books.dropped += mass(skip.query, skip.lse, torch.cat(come, 1), skip.scaling, skip.softcap)
        self.open = left
