"""PyramidKV: the first layers, whose attention is spread out, keep many tokens; the last layers keep few.

The budget falls on a line over the layers around the same average. Which tokens a layer keeps is SnapKV's choice.

What it does not do: it does not look at the attention of this prompt to share the budget (that is CAKE), nor do heads
share (AdaKV). The released code rounds the step from layer to layer, so that its layers together may hold more than the
budget; here each layer is rounded down.

Source: Cai et al. 2024, PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling, section 3,
https://arxiv.org/abs/2406.02069
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.scissorhands import free_and_open, on_line
from tenuto.kv.policies.snapkv import WindowAttention
from tenuto.kv.policy import Allocator, Claim, KVMethod, KVPolicy, Paper, Scored, TopK

__all__ = ["Pyramid", "PyramidKV"]


@dataclass(frozen=True, slots=True)
class Pyramid(Allocator):
    """A line from ``2b - m`` in the first layer to ``m = b // beta`` in the last, b the even share of what is not
    protected; where the first layer has fewer tokens than that, it keeps all and the last gets the difference."""

    beta: int = 20

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        counts = []
        for scored in layers:
            certain, free, open_ = free_and_open(scored, total // len(layers))
            most = max(min(2 * free - free // self.beta, open_), free)
            count = certain + on_line(most, 2 * free - most, scored.view.layer, scored.view.layers)
            counts.append(torch.full((scored.scores.shape[0],), count))
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidKV(KVMethod):
    """Keep more in the first layers than in the last.

    Attributes:
        beta: the last layer gets one beta-th of the even share; 1 is the same for all.
        window: last tokens whose queries judge, and which are always kept.
        kernel: entries that are pooled, an odd number.
    """

    beta: int = 20
    window: int = 32
    kernel: int = 5

    paper: ClassVar[Paper] = Paper(
        "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
        "Cai, Zhang, Gao, Liu, Li, Liu, Lu, Xiong, Dong, Hu, Xiao",
        2024,
        "https://arxiv.org/abs/2406.02069",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("share of the cache that matches the full one", "12 %", "LongBench", "abstract"),
        Claim("accuracy beyond other methods", "up to +20.5 points", "TREC, 0.7 % of the cache", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("pyramidkv",)

    def __post_init__(self) -> None:
        if self.beta < 1 or self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise PolicyError(
                f"pyramidkv: beta={self.beta}, window={self.window}, kernel={self.kernel}. beta and window must be at "
                "least 1, kernel odd."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(
            scorer=WindowAttention(self.window, self.kernel),
            allocator=Pyramid(self.beta),
            selector=TopK(window=self.window),
        )
