"""Expert placement, PiKV's idea made sound: a token lies on the shard of the expert that its router liked best.

Attention of layer l runs before router l, so router l-1 decides; layer 0, and layers after one without a router, fall
back to round robin. Router loads are skewed, so no shard takes more than its share and some slack; what is too much
goes to the shards with the most room. Pages hold tokens of one expert. Every token is held once, whatever its experts.

What it does not do: PiKV stores a token with each of its k experts, and forgets when a buffer is full. Both change the
attention; here nothing is stored twice or lost.

Source: Liu et al. 2025, PiKV: KV Cache Management System for Mixture of Experts, https://arxiv.org/abs/2508.06526
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenuto.errors import PolicyError
from tenuto.shards.policy import Arrivals, Placement, Places, capped

__all__ = ["Expert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert(Placement):
    """Expert ``e`` lives on shard ``e mod shards``.

    Attributes:
        slack: what a shard may hold of a row, as a multiple of its share, at least 1.
        experts: how many experts are told apart; a larger number costs nothing but page tables.
    """

    slack: float = 1.25
    experts: int = 256

    def __post_init__(self) -> None:
        if self.page < 1 or self.slack < 1 or self.experts < 1:
            raise PolicyError(
                f"Expert: page={self.page}, slack={self.slack:g}, experts={self.experts}. All must be at least 1."
            )

    @property
    def kinds(self) -> int:
        return self.experts

    @property
    def routed(self) -> bool:
        return True

    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        if new.experts is None:
            return Places(new.numbers // self.page % new.shards, torch.zeros_like(new.numbers))
        return Places(capped(new.experts % new.shards, new.loads, self.slack), new.experts)
