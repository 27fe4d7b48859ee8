"""ShadowKV: read the small chunks whose mean key matches the query best; chunks that no mean describes are always read.

Keys of neighbours are similar, so a chunk of eight is known by its landmark, the mean of its keys. A few chunks are
not like that: the lowest cosine between one of their keys and the landmark is small. These outliers are read at every
step, and so stay in memory.

What it does not do: ShadowKV also keeps keys before RoPE at low rank (160) in the model's memory, rebuilds the chosen
ones from that and fetches only their values; here keys and values are fetched together, exact. Its chunks and outliers
are chosen per head and once, after the prompt; here for all heads of a layer together (landmark scores as shares,
averaged; the cosine averaged over KV heads), and outliers again whenever a page is added.

Source: Sun et al. 2024, ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference, section 4,
https://arxiv.org/abs/2410.21465
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from tenuto.errors import PolicyError
from tenuto.kv.policy import Claim, Index, KVMethod, KVPolicy, Paper, TopK, shared

__all__ = ["Landmarks", "ShadowKV", "centroid_logits"]


def centroid_logits(queries: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Products of ``queries [heads, head_dim]`` with ``centroids [pages, kv_heads, head_dim]``, ``[heads, pages]``
    float32."""
    grouped = queries.float().unflatten(0, (centroids.shape[1], -1))
    return torch.einsum("hgd,nhd->hgn", grouped, centroids.float()).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Landmarks(Index):
    """The mean key of a page; pages with the lowest ``min_i cos(k_i, mean)`` are always read.

    Attributes:
        page: entries per page.
        pages: pages read per step and layer.
        always: outlier pages.
    """

    page: int = 8
    pages: int = 16
    always: int = 8

    def summarise(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = keys.float().mean(1)
        cosine = F.cosine_similarity(keys.float(), mean[:, None], dim=-1).amin(1)
        return {"landmark": mean.to(keys.dtype), "cosine": cosine}

    def score(self, queries: torch.Tensor, summaries: dict[str, torch.Tensor], scaling: float) -> torch.Tensor:
        return shared(centroid_logits(queries, summaries["landmark"]) * scaling)

    def pinned(self, summaries: dict[str, torch.Tensor]) -> torch.Tensor:
        cosine = summaries["cosine"].mean(-1)
        return cosine.topk(min(self.always, len(cosine)), largest=False).indices


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowKV(KVMethod):
    """Read the chunks with the best landmarks, and the outliers.

    Attributes:
        pages: chunks read per decoding step and layer.
        outliers: chunks that are always read.
        page: tokens per chunk.
        sinks: first tokens, which are always read and stay in memory.
        window: last tokens, which are always read and stay in memory.
    """

    pages: int = 16
    outliers: int = 8
    page: int = 8
    sinks: int = 4
    window: int = 32

    paper: ClassVar[Paper] = Paper(
        "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference",
        "Sun, Chang, Bao, Zheng, Zheng, Liu, Dong, Chi, Chen",
        2024,
        "https://arxiv.org/abs/2410.21465",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("batch", "up to 6x larger", "Llama-3.1-8B and others, A100", "abstract"),
        Claim("throughput", "up to 3.04x", "Llama-3.1-8B and others, A100", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = (
        "shadowkv:pages=64",
        "shadowkv:pages=32",
        "shadowkv",
        "shadowkv:pages=4,outliers=4",
    )

    def __post_init__(self) -> None:
        if min(self.pages, self.page) < 1 or min(self.outliers, self.sinks, self.window) < 0:
            raise PolicyError(
                f"shadowkv: pages={self.pages}, page={self.page}, outliers={self.outliers}, sinks={self.sinks}, "
                f"window={self.window}. pages and page must be at least 1, the others zero or more."
            )

    def compose(self) -> KVPolicy:
        index = Landmarks(self.page, self.pages, self.outliers)
        return KVPolicy(selector=TopK(self.sinks, self.window), index=index)
