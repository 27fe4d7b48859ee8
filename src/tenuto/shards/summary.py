"""Pages whose summary matches the query best: by the mean of their keys, by a bound of their logits, or by both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from tenuto.errors import PolicyError
from tenuto.kv.index import shared
from tenuto.shards.selector import Asked, Selector

__all__ = ["Summary", "bound_logits", "centroid_logits"]


def centroid_logits(asked: Asked) -> torch.Tensor:
    """``[heads, pages]``: the logit of a page's mean key, and the log of how many tokens stand behind it."""
    mean = asked.summaries["total"] / asked.counts.clamp(min=1)[:, None, None]
    queries = asked.queries.float().unflatten(0, (mean.shape[1], -1))
    return torch.einsum("hgd,nhd->hgn", queries, mean).flatten(0, 1) * asked.scaling + asked.counts.log()


def bound_logits(asked: Asked) -> torch.Tensor:
    """``[heads, pages]``: no key of the page has a larger logit (Quest, https://arxiv.org/abs/2406.10774)."""
    least, most = asked.summaries["least"], asked.summaries["most"]
    queries = asked.queries.float().unflatten(0, (least.shape[1], -1))
    up = torch.einsum("hgd,nhd->hgn", queries.clamp(min=0), most)
    down = torch.einsum("hgd,nhd->hgn", queries.clamp(max=0), least)
    return (up + down).flatten(0, 1) * asked.scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Selector):
    """Read the pages with the best summaries, the same for all heads of a layer.

    Attributes:
        by: ``centroid``: the mean key; ``bound``: the least and most of each channel; ``both``: half and half.
    """

    by: Literal["centroid", "bound", "both"] = "centroid"

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
