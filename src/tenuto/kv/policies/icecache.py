"""IceCache: entries with similar keys share a page, wherever they stood in the text, so that few pages suffice.

A query often wants tokens that mean alike and stand far apart; in pages of neighbours each costs a page. Here the
prompt's entries are put into pages by their keys: all are split in two along the direction in which they differ most,
each half again, until a part is a page. A page is scored by its mean key. Entries that leave the window while decoding
make a page of neighbours.

What it does not do: the paper's exact formulas were not at hand. It clusters and searches per head with a dynamic
index (DCI tree); here the pages are those of all KV heads of a layer together, their keys as one vector, and an
exhaustive look at the means takes the place of the search.

Source: IceCache: Memory-efficient KV-cache Management for Long-Sequence LLMs, Mao et al. 2026,
https://arxiv.org/abs/2604.10539
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.shadowkv import centroid_logits
from tenuto.kv.policy import Claim, Index, KVMethod, KVPolicy, Paper, TopK, shared

__all__ = ["Clusters", "IceCache", "split"]

ROUNDS = 8
"""Of power iteration, for the direction in which keys differ most."""


def split(points: torch.Tensor, page: int) -> list[torch.Tensor]:
    """``points [n, width]`` in parts of ``page``, indices sorted, n a multiple of it: halved again and again along
    their first principal direction."""
    parts, done = [torch.arange(len(points), device=points.device)], []
    while parts:
        part = parts.pop()
        if len(part) <= page:
            done.append(part.sort().values)
            continue
        mine = points[part] - points[part].mean(0)
        direction = mine[mine.square().sum(-1).argmax()]
        for _ in range(ROUNDS):
            direction = mine.T @ (mine @ direction)
            direction = direction / direction.norm().clamp(min=1e-30)
        order = part[(mine @ direction).argsort(stable=True)]
        half = (len(part) // page + 1) // 2 * page
        parts += [order[half:], order[:half]]
    return done


@dataclass(frozen=True, slots=True)
class Clusters(Index):
    """Pages of entries with similar keys, scored by their mean key.

    Attributes:
        page: entries per page.
        pages: pages read per step and layer.
    """

    page: int = 16
    pages: int = 8

    def arrange(self, keys: torch.Tensor) -> list[torch.Tensor]:
        points = keys.float().transpose(0, 1).flatten(1)
        return [part.expand(keys.shape[0], -1) for part in split(points, self.page)]

    def summarise(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"centroid": keys.float().mean(1).to(keys.dtype)}

    def score(self, queries: torch.Tensor, summaries: dict[str, torch.Tensor], scaling: float) -> torch.Tensor:
        return shared(centroid_logits(queries, summaries["centroid"]) * scaling)


@dataclass(frozen=True, slots=True, kw_only=True)
class IceCache(KVMethod):
    """Read the pages of similar keys whose mean matches best.

    Attributes:
        pages: pages read per decoding step and layer.
        page: tokens per page.
        sinks: first tokens, which are always read and stay in memory.
        window: last tokens, which are always read and stay in memory.
    """

    pages: int = 8
    page: int = 16
    sinks: int = 4
    window: int = 64

    paper: ClassVar[Paper] = Paper(
        "IceCache: Memory-efficient KV-cache Management for Long-Sequence LLMs",
        "Mao and others",
        2026,
        "https://arxiv.org/abs/2604.10539",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("accuracy of the full cache that is kept", "99 %", "budget of 256 tokens, LongBench", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("icecache:pages=32", "icecache:pages=16", "icecache", "icecache:pages=4")

    def __post_init__(self) -> None:
        if min(self.pages, self.page) < 1 or min(self.sinks, self.window) < 0:
            raise PolicyError(
                f"icecache: pages={self.pages}, page={self.page}, sinks={self.sinks}, window={self.window}. "
                "pages and page must be at least 1, sinks and window zero or more."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(selector=TopK(self.sinks, self.window), index=Clusters(self.page, self.pages))
