"""Summary: read the pages whose summary matches the query best, by the mean of their keys or a bound of their logits.

The bound is Quest's; the mean key with the number of tokens behind it is the leading term of the page's log-sum-exp.

What it does not do: the pages are the same for all heads of a layer, as a shard holds and sends whole pages.

Source: Tang et al. 2024, Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference,
https://arxiv.org/abs/2406.10774
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.index import shared
from tenuto.kv.policies.quest import Bounds
from tenuto.shards.policy import Claim, Paper, Sharding, ShardMethod
from tenuto.shards.selector import Asked, Selector

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["Summary", "bound_logits", "centroid_logits"]


def centroid_logits(asked: Asked) -> torch.Tensor:
    """``[heads, pages]``: the logit of a page's mean key, and the log of how many tokens stand behind it."""
    mean = asked.summaries["total"] / asked.counts.clamp(min=1)[:, None, None]
    queries = asked.queries.float().unflatten(0, (mean.shape[1], -1))
    return torch.einsum("hgd,nhd->hgn", queries, mean).flatten(0, 1) * asked.scaling + asked.counts.log()


def bound_logits(asked: Asked) -> torch.Tensor:
    """``[heads, pages]``: no key of the page has a larger logit, see :class:`~tenuto.kv.policies.quest.Bounds`."""
    return Bounds.bounds(asked.queries, asked.summaries) * asked.scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Selector, ShardMethod):
    """Read the pages with the best summaries, the same for all heads of a layer.

    Attributes:
        by: ``centroid``: the mean key; ``bound``: the least and most of each channel; ``both``: half and half.
    """

    by: str = "centroid"

    aliases: ClassVar[Mapping[str, str]] = {
        "centroid": "page_summary",
        "bound": "page_summary:by=bound",
        "both": "page_summary:by=both",
    }
    paper: ClassVar[Paper] = Paper(
        "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
        "Tang, Zhao, Zhu, Xiao, Kasikci, Han",
        2024,
        "https://arxiv.org/abs/2406.10774",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("speed of self-attention", "up to 7.03x", "Llama, 32k tokens", "authors' page"),
    )
    trials: ClassVar[tuple[str, ...]] = ("round_robin:page=4+page_summary:keep=0.3,sinks=2,window=4",)
    sweep: ClassVar[tuple[str, ...]] = (
        "round_robin+page_summary:keep=0.5",
        "round_robin+page_summary:keep=0.25",
        "round_robin+page_summary",
    )

    def compose(self, profile: Profile | None = None) -> Sharding:
        return Sharding(selector=self)

    def check(self) -> None:
        Selector.check(self)
        if self.by not in ("centroid", "bound", "both"):
            raise PolicyError(f"Summary: by={self.by!r} is not allowed: give centroid, bound or both.")

    @property
    def needs(self) -> tuple[str, ...]:
        return {"centroid": ("total",), "bound": ("least", "most"), "both": ("total", "least", "most")}[self.by]

    def score(self, asked: Asked) -> torch.Tensor:
        given = [centroid_logits(asked)] if self.by != "bound" else []
        given += [bound_logits(asked)] if self.by != "centroid" else []
        return torch.stack([shared(logits).clamp(min=1e-30).log() for logits in given]).logsumexp(0) - math.log(
            len(given)
        )
