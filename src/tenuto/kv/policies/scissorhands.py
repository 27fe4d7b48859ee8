"""Scissorhands: tokens that mattered to recent queries go on to matter; drop those that were below average most often.

When the buffer is full, every entry is judged by the last ``history`` queries: how many of them gave it less than an
even share of attention, ``1/t`` for the query at position t. The most often neglected go, several at a time; recent
tokens stay. Later layers get more of the budget, as importance persists less there; by how much is an option here.

What it does not do: the paper drops half of the buffer at once, here it is a number of tokens. The history is judged
anew from remembered queries on what is still held (they are part of the bytes held); the paper used the attention as it
was. Counts are whole numbers, so ties are many: the older of equals is kept.

Source: Liu et al. 2023, Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression
at Test Time, algorithms 1 and 2, https://arxiv.org/abs/2305.17118
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Allocator, Claim, Every, KVMethod, KVPolicy, Paper, Scored, Scorer, TopK, View

__all__ = ["LaterMore", "Neglect", "Scissorhands", "free_and_open", "on_line"]


def on_line(first: int, last: int, layer: int, layers: int) -> int:
    """The number of ``layer`` on a line from ``first`` to ``last`` over all layers, rounded down: all layers together
    get no more than ``layers * (first + last) / 2``."""
    return first if layers == 1 else first + (last - first) * layer // (layers - 1)


def free_and_open(scored: Scored, total: int) -> tuple[int, int, int]:
    """Per head of one layer: protected entries, entries of an even share that are free beyond them, and unprotected
    tokens there have been (the same for all layers)."""
    certain = int(scored.protected.sum(-1).max())
    return certain, max(total // scored.scores.shape[0] - certain, 0), max(scored.view.seen - certain, 0)


@dataclass(frozen=True, slots=True)
class Neglect(Scorer):
    """Minus ``I_i = sum over the last queries t of 1[A[t, i] < 1/t]``, averaged over the group.

    A query counts only for entries it sees.
    """

    probes: int = 32

    def score(self, view: View) -> torch.Tensor:
        share = 1 / (view.query_positions + 1).float()
        seen = (view.index[:, None] <= view.query_index[:, None]) & view.held[:, None]
        below = (view.attention() < share[:, None]) & seen[:, None]
        return below.sum(2).float().mean(1).neg()


@dataclass(frozen=True, slots=True)
class LaterMore(Allocator):
    """A line over the layers, from ``1 - tilt`` to ``1 + tilt`` times the even share of what is not protected."""

    tilt: float = 0.25

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        counts = []
        for scored in layers:
            certain, free, open_ = free_and_open(scored, total // len(layers))
            last = max(min(int((1 + self.tilt) * free), open_), free)
            count = certain + on_line(2 * free - last, last, scored.view.layer, scored.view.layers)
            counts.append(torch.full((scored.scores.shape[0],), count))
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scissorhands(KVMethod):
    """Drop what recent queries neglect.

    Attributes:
        history: last queries that judge.
        window: last tokens that are always kept.
        drop: tokens dropped at once while decoding.
        tilt: how much more than the even share the last layer gets, and the first less, from 0 to below 1.
    """

    history: int = 32
    window: int = 10
    drop: int = 32
    tilt: float = 0.25

    paper: ClassVar[Paper] = Paper(
        "Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression at Test Time",
        "Liu, Desai, Liao, Wang, Xie, Xu, Kyrillidis, Shrivastava",
        2023,
        "https://arxiv.org/abs/2305.17118",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("memory of the cache", "up to 5x less", "OPT", "abstract"),
        Claim("memory of the cache with 4 bits", "up to 20x less", "OPT", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("scissorhands",)

    def __post_init__(self) -> None:
        if min(self.history, self.drop) < 1 or self.window < 0 or not 0 <= self.tilt < 1:
            raise PolicyError(
                f"scissorhands: history={self.history}, window={self.window}, drop={self.drop}, tilt={self.tilt}. "
                "history and drop must be at least 1, window zero or more, tilt from 0 to below 1."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(
            trigger=Every(self.drop),
            scorer=Neglect(self.history),
            allocator=LaterMore(self.tilt),
            selector=TopK(window=self.window),
        )
