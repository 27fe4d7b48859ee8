"""Blocks: runs of neighbouring pages on one shard, so that a stretch of text is read from one place.

What it does not do: look at the text; it is a baseline. The shard that holds the end of a text gets all new tokens for
a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.shards.policy import Arrivals, Placement, Places, Sharding, ShardMethod

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["Blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks(Placement, ShardMethod):
    """Runs of ``block`` pages go to shard after shard; loads differ by one block at most.

    Attributes:
        block: pages.
    """

    block: int = 8

    baseline: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    trials: ClassVar[tuple[str, ...]] = ("blocks:page=4,block=2",)

    def __post_init__(self) -> None:
        if min(self.page, self.block) < 1:
            raise PolicyError(f"Blocks: page={self.page}, block={self.block}. Both must be at least 1.")

    def compose(self, profile: Profile | None = None) -> Sharding:
        return Sharding(placement=self)

    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        return Places(new.numbers // (self.page * self.block) % new.shards, torch.zeros_like(new.numbers))
