"""The block that says which pages of old entries a query reads, where a cache is longer than the memory it may hold.

With an :class:`Index` nothing is evicted: entries beyond sinks and window leave the model's memory as pages of one
layer, all KV heads together, and their summaries stay. Blocks are frozen and hold no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

__all__ = ["Index", "shared"]


def shared(logits: torch.Tensor) -> torch.Tensor:
    """What pages are worth to all heads of a layer together, ``[pages]`` float32, from ``[heads, pages]``.

    Logits of different heads have different scales, so each head's are made shares by a softmax, then averaged.
    """
    return logits.float().softmax(-1).mean(0)


class Index(ABC):
    """Which pages does a query read?

    Fields: ``page``, the most entries per page and KV head; ``pages``, how many pages are read per decoding step and
    layer; ``always``, how many more are read whatever the query is.
    """

    __slots__ = ()
    page: int
    pages: int
    always: int = 0

    @property
    def reserve(self) -> int:
        """Entries per head that memory must have room for beside sinks and window: all pages that are read in one
        step, and one more of entries on their way out of the window."""
        return (self.pages + self.always + 1) * self.page

    @abstractmethod
    def summarise(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        """What stays in memory of a page's ``keys [kv_heads, entries, head_dim]``: named tensors, whose shapes do not
        depend on how many entries there are."""

    @abstractmethod
    def score(self, queries: torch.Tensor, summaries: dict[str, torch.Tensor], scaling: float) -> torch.Tensor:
        """What each page is worth to ``queries [heads, head_dim]``, ``[pages]``, higher is more.

        Args:
            summaries: those of all pages, ``[pages, ...]`` each; scaling: what logits are multiplied with.
        """

    def arrange(self, keys: torch.Tensor) -> list[torch.Tensor]:
        """Which entries make a page, ``[kv_heads, entries]`` int64 for each: a partition, head by head, of those
        given, ``keys [kv_heads, whole pages, head_dim]``. By default runs of ``page`` neighbours."""
        at = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[0], -1)
        return list(at.split(self.page, 1))

    def pinned(self, summaries: dict[str, torch.Tensor]) -> torch.Tensor:
        """Numbers of the pages that are always read, at most ``always``, int64."""
        return torch.zeros(0, dtype=torch.int64)

    def boundary(self, before: torch.Tensor, queries: torch.Tensor) -> bool:
        """Whether pages are chosen anew for ``queries``; ``before`` are those of the last choice, both
        ``[heads, head_dim]``."""
        return True
