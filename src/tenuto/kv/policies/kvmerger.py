"""KVMerger: neighbours with similar keys become one entry, a weighted mean around the one that was attended to most.

Neighbouring tokens often have keys that point almost the same way. As many links between neighbours as the budget asks
for are closed, the most similar first; what hangs together is a merging set. Its pivot is the entry that received the
most attention, and the closer a key is to the pivot's, the more it counts in the means of keys and values. The merged
entry stands for all tokens of its set (``logit += log n``), at the pivot's position. Recent tokens are left alone.

What it does not do: there is no threshold on the similarity, the budget sets it for each head. Where a budget leaves
nothing beside the recent tokens, the others are dropped. Entries in a codec that lose are dropped, not merged.

Source: Wang et al. 2024, Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks,
section 4, https://arxiv.org/abs/2407.08454
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from tenuto.errors import PolicyError
from tenuto.kv.policies.h2o import ReceivedAttention
from tenuto.kv.policy import Claim, Drop, Entries, KVMethod, KVPolicy, Paper, Reducer, Scored, Selector, TopK, View

__all__ = ["GaussianMerge", "KVMerger", "Pivots", "links"]


def links(keys: torch.Tensor, protected: torch.Tensor) -> torch.Tensor:
    """Cosine of each key with the next, ``[entries - 1]`` float32; -inf where one of the two is protected."""
    keys = keys.float()
    alone = protected[1:] | protected[:-1]
    return F.cosine_similarity(keys[1:], keys[:-1], dim=-1).masked_fill(alone, float("-inf"))


def _first_of_each(values: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    """Where each of the groups ``0 ... groups - 1`` has its largest value first, ``[groups]``."""
    best = values.new_full((groups,), float("-inf")).scatter_reduce(0, group, values, "amax")
    at = torch.arange(len(values), device=values.device)
    hit = torch.where(values == best[group], at, len(values))
    return at.new_full((groups,), len(values)).scatter_reduce(0, group, hit, "amin")


@dataclass(frozen=True, slots=True)
class Pivots(Selector):
    """One entry per merging set, that of the highest score; ``counts`` sets, from closing the most similar links."""

    window: int = 32
    sinks: int = 0

    def select(self, scored: Scored, counts: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(scored.scores, dtype=torch.uint8)
        for head, count in enumerate(counts.tolist()):
            start = scored.scores.shape[1] - int(scored.view.counts[head])
            scores, protected = scored.scores[head, start:], scored.protected[head, start:]
            if not count:
                continue
            similar = links(scored.view.keys[head, start:], protected)
            closed = torch.zeros_like(similar, dtype=torch.bool)
            most = min(len(scores) - count, int(torch.isfinite(similar).sum()))
            closed[similar.argsort(descending=True, stable=True)[:most]] = True
            group = F.pad((~closed).long().cumsum(0), (1, 0))
            scores = scores.masked_fill(protected, float("inf"))
            pivots = _first_of_each(scores, group, int(group[-1]) + 1)
            best = scores[pivots].argsort(descending=True, stable=True)[:count]
            kept[head, start + pivots[best]] = 1
        return kept


@dataclass(frozen=True, slots=True)
class GaussianMerge(Reducer):
    """Merges every set into its pivot p: ``w_i = exp(-|k_p - k_i|^2 / (2 sigma^2))``, times the count weight of i.

    Keys and values are the means of the set by these weights; sigma is the mean distance of the others from the pivot.
    Between two kept entries the sets part at the least similar link. Entries of the last ``window`` take nothing in.
    """

    window: int = 32

    def reduce(self, view: View, kept: torch.Tensor) -> list[Entries]:
        parts = Drop().reduce(view, kept)
        protected = TopK(window=self.window).protected(view)
        return [self._merged(view, head, kept[head], protected[head], part) for head, part in enumerate(parts)]

    def _merged(self, view: View, head: int, kept: torch.Tensor, protected: torch.Tensor, part: Entries) -> Entries:
        pivots = kept.nonzero()[:, 0]
        if not len(pivots) or len(pivots) == int(view.held[head].sum()):
            return part
        inner = slice(int(pivots[0]), int(pivots[-1]) + 1)
        apart = -links(view.keys[head, inner], protected[inner])
        between = kept[inner].long().cumsum(0)[:-1] - 1
        cuts = _first_of_each(apart, between, len(pivots) - 1) + inner.start + 1
        place = torch.zeros_like(kept, dtype=torch.int64)
        place[cuts] = 1
        place = place.cumsum(0)
        use = view.held[head] & (kept | ~protected[pivots][place])
        place, count = place[use], view.weights[head][use]
        keys, values = view.keys[head][use].float(), view.values[head][use].float()
        zeros = keys.new_zeros(len(pivots))
        far = (keys - part.keys.float()[place]).square().sum(-1)
        others = zeros.index_add(0, place, (~kept[use]).float())
        sigma = zeros.index_add(0, place, far.sqrt()) / others.clamp(min=1)
        near = count * torch.exp(-far / (2 * sigma.square()).clamp(min=1e-12)[place])
        total = zeros.index_add(0, place, near)[:, None]
        merged = (others > 0)[:, None]

        def mean(x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            sums = x.new_zeros(len(pivots), x.shape[1]).index_add(0, place, x * near[:, None])
            return torch.where(merged, (sums / total).to(own.dtype), own)

        weights = zeros.index_add(0, place, count)
        return Entries(mean(keys, part.keys), mean(values, part.values), part.index, weights, part.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVMerger(KVMethod):
    """Merge neighbours with similar keys.

    Attributes:
        window: last tokens that are always kept as they are.
    """

    window: int = 32

    paper: ClassVar[Paper] = Paper(
        "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context Tasks",
        "Wang, Jin, Yu, Zhang",
        2024,
        "https://arxiv.org/abs/2407.08454",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("budgets at which it is ahead of H2O and CaM", "50 % and 35 %", "LongBench, ZeroScrolls", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("kvmerger",)

    def __post_init__(self) -> None:
        if self.window < 0:
            raise PolicyError(f"kvmerger: window={self.window} is not allowed: give zero or more tokens.")

    def compose(self) -> KVPolicy:
        return KVPolicy(scorer=ReceivedAttention(), selector=Pivots(self.window), losers=GaussianMerge(self.window))
