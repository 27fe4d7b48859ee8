"""Knorm: keep the keys of small norm, which are the ones that tend to be attended to.

One number per key, no queries, no attention: the cheapest score there is. It is computed in float32, because in half
precision most norms of a head are ties.

What it does not do: it does not look at what is asked, and it keeps no recent window of its own.

Source: Devoto et al. 2024, A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression,
https://arxiv.org/abs/2406.11430
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Claim, KVMethod, KVPolicy, Paper, Scorer, TopK, View

__all__ = ["KeyNorm", "Knorm"]


@dataclass(frozen=True, slots=True)
class KeyNorm(Scorer):
    """Minus the Euclidean norm of the key."""

    def score(self, view: View) -> torch.Tensor:
        return view.keys.float().square().sum(-1).sqrt().neg()


@dataclass(frozen=True, slots=True, kw_only=True)
class Knorm(KVMethod):
    """Keep the keys of small norm.

    Attributes:
        sinks: first tokens that are always kept.
        window: last tokens that are always kept.
    """

    sinks: int = 0
    window: int = 0

    paper: ClassVar[Paper] = Paper(
        "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
        "Devoto, Zhao, Scardapane, Minervini",
        2024,
        "https://arxiv.org/abs/2406.11430",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "size of the cache without losing accuracy",
            "50 % smaller",
            "language modelling, needle in a haystack",
            "abstract",
        ),
        Claim("size of the cache without losing accuracy", "90 % smaller", "passkey retrieval", "abstract"),
    )
    demo: ClassVar[Mapping[str, float]] = {"knorm": 0.5}
    sweep: ClassVar[tuple[str, ...]] = ("knorm",)

    def __post_init__(self) -> None:
        if min(self.sinks, self.window) < 0:
            raise PolicyError(f"knorm: sinks={self.sinks}, window={self.window}. Both must be zero or more.")

    def compose(self) -> KVPolicy:
        return KVPolicy(scorer=KeyNorm(), selector=TopK(self.sinks, self.window))
