"""CacheBlend: run again the few tokens of each chunk whose values change most when they see the chunks before them.

All tokens run through the first layers. There the values that are new are compared with the reused ones, and the
tokens that differ most, few in most texts, run through all later layers; the others keep what they had. Tokens that
deviate in one layer tend to deviate in the next, so one comparison early is enough. The question that follows the
chunks is computed as always, by the call that is given the joined cache.

What it does not do: the paper's pipelining of loading and computing, and its choice of the fraction by the speed of
the disk. One comparison is made, not several with fewer tokens each time.

Source: Yao et al. 2024, CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion,
https://arxiv.org/abs/2405.16444, section 4
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.reuse.policy import Assembler, Claim, Paper, Seen, check_fraction, check_layer

__all__ = ["CacheBlend", "deviation"]


def deviation(seen: Seen) -> torch.Tensor:
    """How far the values of each token moved, ``sum (V_new - V_old)^2`` over heads and channels ``[tokens]``."""
    return (seen.values.float() - seen.old_values.float()).square().sum((0, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBlend(Assembler):
    """Those whose values deviate most.

    Attributes:
        recompute: fraction of the tokens behind the first chunk that run in all layers, 0 to 1.
        check: number of the layer in which values are compared; all layers up to it run for all these tokens.

    Raises:
        PolicyError: a fraction or layer that is none.
    """

    recompute: float = 0.15
    check: int = 1

    paper: ClassVar[Paper] = Paper(
        title="CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion",
        authors="Jiayi Yao, Hanchen Li, Yuhan Liu, Siddhant Ray, Yihua Cheng, Qizheng Zhang, Kuntai Du, Shan Lu, "
        "Junchen Jiang",
        year=2024,
        url="https://arxiv.org/abs/2405.16444",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("time to the first token", "2.2x to 3.3x lower", "three open models, four datasets", "abstract"),
        Claim("throughput", "2.8x to 5x", "three open models, four datasets", "abstract"),
    )

    def __post_init__(self) -> None:
        check_fraction("recompute", self.recompute)
        check_layer(self.check)

    def choose(self, seen: Seen) -> torch.Tensor | None:
        if seen.layer != self.check:
            return None
        return deviation(seen).topk(round(self.recompute * len(seen.at))).indices.sort().values
