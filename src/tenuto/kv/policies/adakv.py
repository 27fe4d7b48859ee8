"""AdaKV: the heads of a layer share one budget, and heads whose attention is spread out get more of it.

The best scores of all heads of a layer together decide how many entries each head keeps; every head is sure of a
fraction of the even share. The memory of the heads really differs: nothing is masked, what a head gives up is free.

What it does not do: layers do not share (that is PyramidKV and CAKE). Any scorer goes with it (``knorm+adakv``); its
own is SnapKV's with max pooling. The option to weigh heads by the mass they retain is left out.

Source: Feng et al. 2024, Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation, algorithm 1,
https://arxiv.org/abs/2407.11550
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.snapkv import WindowAttention
from tenuto.kv.policy import Allocator, KVMethod, KVPolicy, Paper, Scored, TopK

__all__ = ["AdaKV", "JointHeads", "whole"]


def whole(shares: torch.Tensor, total: int) -> torch.Tensor:
    """Shares ``[n]`` rounded to whole numbers that add up to ``total``: the largest fractions are rounded up."""
    counts = shares.floor().long()
    missing = total - int(counts.sum())
    up = (shares - counts).argsort(dim=-1, descending=True, stable=True)[: max(missing, 0)]
    counts[up] += 1
    return counts


@dataclass(frozen=True, slots=True)
class JointHeads(Allocator):
    """``(1 - safeguard) * c + safeguard * B`` per head: c of the layer's best B-per-head entries are this head's.

    With ``minimum``, the best ``safeguard * B`` of each head are kept, and the layer's best of all others.
    """

    safeguard: float
    minimum: bool = False

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        if self.minimum:
            return [self._at_least(scored, total // len(layers)) for scored in layers]
        counts = []
        for scored in layers:
            certain = scored.protected.sum(-1)
            free = max(total // len(layers) - int(certain.sum()), 0)
            open_ = scored.scores.masked_fill(scored.protected, float("-inf"))
            free = min(free, int(torch.isfinite(open_).sum()))
            best = open_.flatten().topk(free).indices // open_.shape[1]
            won = torch.bincount(best, minlength=open_.shape[0]).double()
            shares = (1 - self.safeguard) * won + self.safeguard * free / open_.shape[0]
            counts.append(certain + whole(shares, free))
        return counts

    def _at_least(self, scored: Scored, total: int) -> torch.Tensor:
        heads, entries = scored.scores.shape
        scores = scored.scores.masked_fill(scored.protected, float("inf"))
        sure = scores.topk(min(int(total // heads * self.safeguard), entries), -1).indices
        held = torch.isfinite(scored.scores) | scored.protected
        scores = scores.scatter(-1, sure, float("inf")).masked_fill(~held, float("-inf"))
        best = scores.flatten().topk(min(total, int(held.sum()))).indices // entries
        return torch.bincount(best, minlength=heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaKV(KVMethod):
    """Move budget between the heads of a layer.

    Attributes:
        safeguard: fraction of the even share every head is sure of, in [0, 1]; 1 is the same for all.
        minimum: whether that fraction counts as part of what a head wins, as in kvpress; the paper adds it to a share
            of what the head wins.
        window: last tokens whose queries judge, and which are always kept.
        kernel: entries that are pooled, an odd number.
    """

    safeguard: float = 0.2
    minimum: bool = False
    window: int = 32
    kernel: int = 7

    paper: ClassVar[Paper] = Paper(
        "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
        "Feng, Lv, Cao, Xie, Zhou",
        2024,
        "https://arxiv.org/abs/2407.11550",
    )
    sweep: ClassVar[tuple[str, ...]] = ("adakv",)

    def __post_init__(self) -> None:
        if not 0 <= self.safeguard <= 1 or self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise PolicyError(
                f"adakv: safeguard={self.safeguard}, window={self.window}, kernel={self.kernel}. safeguard must be "
                "from 0 to 1, window at least 1, kernel odd."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(
            scorer=WindowAttention(self.window, self.kernel, "max"),
            allocator=JointHeads(self.safeguard, self.minimum),
            selector=TopK(window=self.window),
        )
