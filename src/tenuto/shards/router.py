"""PiKV's rule, for comparison: read the pages of the experts that the query's own router likes.

The premise is that a token attends to tokens of its own experts. It did not hold in our measurements (docs/pikv.md).

Source: Liu et al. 2025, PiKV: KV Cache Management System for Mixture of Experts, https://arxiv.org/abs/2508.06526
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenuto.shards.selector import Asked, Selector

__all__ = ["Router"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Router(Selector):
    """A page is worth the router's mean probability of its tokens' experts. In layers without a router before them the
    newest pages are read."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("experts",)

    def score(self, asked: Asked) -> torch.Tensor:
        experts = asked.summaries.get("experts")
        if asked.router is None or experts is None:
            return asked.newest.float()
        return (experts @ asked.router / asked.counts.clamp(min=1)).clamp(min=1e-30).log()
