"""SnapKV: at the end of the prompt, keep the tokens that its last tokens attend to, and their neighbours.

The attention of a window of last queries is added up per entry and smoothed by average pooling, so that an attended
token brings its neighbours along; the window itself is always kept. Scores of the query heads that share a KV head are
averaged after pooling, so the cache keeps the model's own number of KV heads (the released code expands it first).

What it does not do: it cannot know a question that comes after the compression.

Source: Li et al. 2024, SnapKV: LLM Knows What You are Looking for Before Generation, https://arxiv.org/abs/2404.14469
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from tenuto.errors import PolicyError
from tenuto.kv.policy import Claim, KVMethod, KVPolicy, Paper, Scorer, TopK, View

__all__ = ["SnapKV", "WindowAttention", "pooled"]


def pooled(scores: torch.Tensor, window: int, kernel: int, kind: Literal["avg", "max"]) -> torch.Tensor:
    """Scores ``[..., entries]`` smoothed over ``kernel`` neighbours, the last ``window`` entries left out and as is.

    Average pooling counts what lies beyond the ends as zero, as the released code does.
    """
    split = max(scores.shape[-1] - window, 0)
    before, last = scores[..., :split], scores[..., split:]
    if kernel == 1 or not split:
        return scores
    if kind == "avg":
        smooth = F.avg_pool1d(before, kernel, stride=1, padding=kernel // 2)
    else:
        smooth = F.max_pool1d(before, kernel, stride=1, padding=kernel // 2)
    return torch.cat([smooth, last], -1)


@dataclass(frozen=True, slots=True)
class WindowAttention(Scorer):
    """Attention of the last ``probes`` queries, added up, pooled over ``kernel`` entries, averaged over the group."""

    probes: int = 32
    kernel: int = 5
    pooling: Literal["avg", "max"] = "avg"

    def score(self, view: View) -> torch.Tensor:
        received = view.attention().sum(2)
        return pooled(received, self.probes, self.kernel, self.pooling).mean(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapKV(KVMethod):
    """Keep what the last tokens of the prompt attend to.

    Attributes:
        window: last tokens whose queries judge, and which are always kept.
        kernel: entries that are pooled, an odd number.
    """

    window: int = 32
    kernel: int = 5

    paper: ClassVar[Paper] = Paper(
        "SnapKV: LLM Knows What You are Looking for Before Generation",
        "Li, Huang, Yang, Venkitesh, Locatelli, Ye, Cai, Lewis, Chen",
        2024,
        "https://arxiv.org/abs/2404.14469",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("speed of generation", "3.6x", "16k tokens", "abstract"),
        Claim("memory efficiency", "8.2x", "16k tokens", "abstract"),
    )
    yardstick: ClassVar[bool] = True
    demo: ClassVar[Mapping[str, float]] = {"snapkv": 0.5}
    sweep: ClassVar[tuple[str, ...]] = ("snapkv",)

    def __post_init__(self) -> None:
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise PolicyError(
                f"snapkv: window={self.window}, kernel={self.kernel}. window must be at least 1, kernel odd."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(scorer=WindowAttention(self.window, self.kernel), selector=TopK(window=self.window))
