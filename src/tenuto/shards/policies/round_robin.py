"""RoundRobin: page after page to shard after shard.

A baseline: every shard holds the same number of tokens but for one page, whatever the text is. With all shards read
this is decode context parallelism, as vLLM and SGLang ship it, interleaved by pages.

What it does not do: look at the text, or keep what is read together in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tenuto.shards.policy import Arrivals, Placement, Places, Sharding, ShardMethod

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["RoundRobin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin(Placement, ShardMethod):
    """Page ``p`` of a row is on shard ``p mod shards``."""

    baseline: ClassVar[bool] = True
    default: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    trials: ClassVar[tuple[str, ...]] = ("round_robin:page=4",)

    def compose(self, profile: Profile | None = None) -> Sharding:
        return Sharding(placement=self)

    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        return Places(new.numbers // self.page % new.shards, torch.zeros_like(new.numbers))
