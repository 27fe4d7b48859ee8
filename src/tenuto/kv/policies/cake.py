"""CAKE: layers whose attention is spread out and shifts from query to query get more of the budget.

The attention of the last queries says how much a layer wants: its entropy over the tokens (how far it is spread) times
its variance over the queries (how much it shifts). Within a layer, a token is worth the mean and the variance of the
attention it got, smoothed over its neighbours: one that mattered only to some queries may matter again.

What it does not do: the paper shares the budget again as each layer of the prefill is done and evicts from earlier
layers once more; here all layers are scored first and evicted once, which keeps the same tokens and holds the whole
prompt until then. The exponents are tuned per model and budget in the released code; here they are 1.

Source: Qin et al. 2025, CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences, section 4,
https://arxiv.org/abs/2503.12491
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.adakv import whole
from tenuto.kv.policies.razor_attention import in_proportion
from tenuto.kv.policies.snapkv import pooled
from tenuto.kv.policy import Allocator, Claim, KVMethod, KVPolicy, Paper, Scored, Scorer, TopK, View

__all__ = ["Cake", "LayerPreference", "MeanAndVariance"]


@dataclass(frozen=True, slots=True)
class MeanAndVariance(Scorer):
    """``mean_t A + gamma * Var_t A`` over the last ``probes`` queries t, pooled over ``kernel`` entries by their
    average, averaged over the group."""

    probes: int = 32
    kernel: int = 5
    gamma: float = 200.0

    def score(self, view: View) -> torch.Tensor:
        attention = view.attention()
        worth = attention.mean(2) + self.gamma * attention.var(2, correction=0)
        return pooled(worth, self.probes, self.kernel, "avg").mean(1)


@dataclass(frozen=True, slots=True)
class LayerPreference(Allocator):
    """What is not protected, shared by ``P = H^(1/tau1) * V^(1/tau2)``, none above what a layer holds.

    H is the entropy ``-sum A log A`` and V the variance over the last queries, both added up over the query heads and
    over the entries that are not protected.
    """

    joint: ClassVar[bool] = True
    tau1: float = 1.0
    tau2: float = 1.0

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        certain = [scored.protected.sum(-1) for scored in layers]
        held = torch.stack([scored.view.counts.sum() for scored in layers])
        caps = held - torch.stack([count.sum() for count in certain])
        free = min(max(total - int((held - caps).sum()), 0), int(caps.sum()))
        wanted = torch.stack([self.preference(scored) for scored in layers])
        shares = whole(in_proportion(wanted, caps, free), free)
        return [count + share // len(count) for count, share in zip(certain, shares, strict=True)]

    def preference(self, scored: Scored) -> torch.Tensor:
        """How much of the budget this layer wants, float64.

        Raises:
            PolicyError: the scorer remembers no queries.
        """
        if not scored.view.queries.shape[1]:
            raise PolicyError(
                "cake's allocator looks at the attention of the last queries: combine it with a scorer that does so "
                "too, for example snapkv+cake."
            )
        attention = scored.view.attention().double()
        attention = attention.masked_fill(scored.protected[:, None, None], 0.0)
        entropy, variance = torch.special.entr(attention).sum(), attention.var(2, correction=0).sum()
        preferred: torch.Tensor = entropy ** (1 / self.tau1) * variance ** (1 / self.tau2)
        return preferred


@dataclass(frozen=True, slots=True, kw_only=True)
class Cake(KVMethod):
    """Layers share the budget by the entropy and variance of their attention.

    Attributes:
        window: last tokens whose queries judge, and which are always kept.
        kernel: entries that are pooled, an odd number.
        gamma: weight of the variance in a token's score.
        tau1: the larger, the less the entropy of attention tells layers apart.
        tau2: the larger, the less its variance does.
    """

    window: int = 32
    kernel: int = 5
    gamma: float = 200.0
    tau1: float = 1.0
    tau2: float = 1.0

    paper: ClassVar[Paper] = Paper(
        "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences",
        "Qin, Cao, Lin, Hu, Fan, Cheng, Lin, Li",
        2025,
        "https://arxiv.org/abs/2503.12491",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("share of the cache that keeps the model's quality", "3.2 %", "LongBench, NeedleBench", "abstract"),
        Claim("decoding latency against the full cache", "over 10x lower", "128k tokens, FlashAttention-2", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("cake",)

    def __post_init__(self) -> None:
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0 or self.gamma < 0:
            raise PolicyError(
                f"cake: window={self.window}, kernel={self.kernel}, gamma={self.gamma}. window must be at least 1, "
                "kernel odd, gamma zero or more."
            )
        if min(self.tau1, self.tau2) <= 0:
            raise PolicyError(f"cake: tau1={self.tau1}, tau2={self.tau2}. Both must be above zero.")

    def compose(self) -> KVPolicy:
        return KVPolicy(
            scorer=MeanAndVariance(self.window, self.kernel, self.gamma),
            allocator=LayerPreference(self.tau1, self.tau2),
            selector=TopK(window=self.window),
        )
