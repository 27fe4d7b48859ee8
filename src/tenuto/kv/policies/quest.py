"""Quest: read only the pages whose keys could match the query best, by the smallest and largest number per channel.

Of every page the smallest and the largest value of each channel of its keys are kept. A channel of the query can then
add at most the larger of its products with the two to any logit of the page; the sum over channels is an upper bound
of all of them. The pages of the highest bound are read, exactly.

What it does not do: the pages are the same for all heads of a layer, so that one fetch brings them: each head's bounds
are made shares by a softmax and averaged. Quest itself chooses per head, leaves the first two layers whole, and moves
nothing out of memory.

Source: Tang et al. 2024, Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, algorithm 1,
https://arxiv.org/abs/2406.10774
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Claim, Index, KVMethod, KVPolicy, Paper, TopK, shared

__all__ = ["Bounds", "Quest"]


@dataclass(frozen=True, slots=True)
class Bounds(Index):
    """Upper bound of ``q . k`` over a page: ``sum_i max(q_i min_i, q_i max_i)``.

    Attributes:
        page: entries per page; pages: pages read per step and layer.
    """

    page: int = 16
    pages: int = 8

    def summarise(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"least": keys.amin(1), "most": keys.amax(1)}

    def score(self, queries: torch.Tensor, summaries: dict[str, torch.Tensor], scaling: float) -> torch.Tensor:
        return shared(self.bounds(queries, summaries) * scaling)

    @staticmethod
    def bounds(queries: torch.Tensor, summaries: dict[str, torch.Tensor]) -> torch.Tensor:
        """``[heads, pages]`` float32; ``max(q a, q b) = relu(q) max + min(q, 0) min`` per channel."""
        least, most = summaries["least"].float(), summaries["most"].float()
        q = queries.float().unflatten(0, (least.shape[1], -1))
        up = torch.einsum("hgd,nhd->hgn", q.clamp(min=0), most)
        return (up + torch.einsum("hgd,nhd->hgn", q.clamp(max=0), least)).flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quest(KVMethod):
    """Read the pages of the highest bound.

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
        "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
        "Tang, Zhao, Zhu, Xiao, Kasikci, Han",
        2024,
        "https://arxiv.org/abs/2406.10774",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "speed of self-attention",
            "up to 7.03x",
            "Llama, 32k tokens",
            "authors' page; the abstract of the arXiv version has both numbers exchanged",
        ),
        Claim("latency of inference", "2.23x lower", "Llama, 32k tokens", "authors' page"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("quest:pages=32", "quest:pages=16", "quest", "quest:pages=4")

    def __post_init__(self) -> None:
        if min(self.pages, self.page) < 1 or min(self.sinks, self.window) < 0:
            raise PolicyError(
                f"quest: pages={self.pages}, page={self.page}, sinks={self.sinks}, window={self.window}. "
                "pages and page must be at least 1, sinks and window zero or more."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(selector=TopK(self.sinks, self.window), index=Bounds(self.page, self.pages))
