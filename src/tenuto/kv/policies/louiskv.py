"""LouisKV: choose pages anew only where the meaning changes, and read the same pages until then.

While a model writes about one thing its queries hardly turn, and the old entries that matter stay the same. So the
pages are chosen when the cosine between the query and that of the last choice falls below a threshold, a semantic
boundary; in between nothing is scored and nothing is fetched. A page is scored by its mean key.

What it does not do: the paper clusters the prompt's entries by k-means and the answer's into segments; here pages are
runs of neighbours. Its exact formulas were not at hand: the cosine is of all heads' queries of a layer as one vector,
after RoPE, and so also falls with distance alone. A page that leaves the window between two boundaries is first read
after the next. A prefill is a boundary.

Source: Wu et al. 2025, LouisKV: Efficient KV Cache Retrieval for Long Input-Output Sequences,
https://arxiv.org/abs/2510.11292
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from tenuto.errors import PolicyError
from tenuto.kv.policies.shadowkv import centroid_logits
from tenuto.kv.policy import Claim, Index, KVMethod, KVPolicy, Paper, TopK, shared

__all__ = ["AtBoundaries", "LouisKV"]


@dataclass(frozen=True, slots=True)
class AtBoundaries(Index):
    """Pages by their mean key, chosen anew where ``cos(q, q at the last choice) < threshold``.

    Attributes:
        page: entries per page.
        pages: pages read per step and layer.
    """

    page: int = 16
    pages: int = 8
    threshold: float = 0.8

    def summarise(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"centroid": keys.float().mean(1).to(keys.dtype)}

    def score(self, queries: torch.Tensor, summaries: dict[str, torch.Tensor], scaling: float) -> torch.Tensor:
        return shared(centroid_logits(queries, summaries["centroid"]) * scaling)

    def boundary(self, before: torch.Tensor, queries: torch.Tensor) -> bool:
        return float(F.cosine_similarity(before.float().flatten(), queries.float().flatten(), dim=0)) < self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class LouisKV(KVMethod):
    """Read the same pages until the query has turned.

    Attributes:
        threshold: cosine below which pages are chosen anew; above 1: at every step.
        pages: pages read per decoding step and layer.
        page: tokens per page.
        sinks: first tokens, which are always read and stay in memory.
        window: last tokens, which are always read and stay in memory.
    """

    threshold: float = 0.8
    pages: int = 8
    page: int = 16
    sinks: int = 4
    window: int = 64

    paper: ClassVar[Paper] = Paper(
        "LouisKV: Efficient KV Cache Retrieval for Long Input-Output Sequences",
        "Wu and others",
        2025,
        "https://arxiv.org/abs/2510.11292",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("speed against other retrieval methods", "up to 4.7x", "long inputs and long outputs", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("louiskv:threshold=1.1", "louiskv:threshold=0.9", "louiskv", "louiskv:pages=4")

    def __post_init__(self) -> None:
        if min(self.pages, self.page) < 1 or min(self.sinks, self.window) < 0:
            raise PolicyError(
                f"louiskv: pages={self.pages}, page={self.page}, sinks={self.sinks}, window={self.window}. "
                "pages and page must be at least 1, sinks and window zero or more."
            )

    def compose(self) -> KVPolicy:
        index = AtBoundaries(self.page, self.pages, self.threshold)
        return KVPolicy(selector=TopK(self.sinks, self.window), index=index)
