"""Blocks of neighbouring pages on one shard, so that a stretch of text is read from one place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenuto.errors import PolicyError
from tenuto.shards.policy import Arrivals, Placement, Places

__all__ = ["Blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks(Placement):
    """Runs of ``block`` pages go to shard after shard; loads differ by one block at most.

    Attributes:
        block: pages.
    """

    block: int = 8

    def __post_init__(self) -> None:
        if min(self.page, self.block) < 1:
            raise PolicyError(f"Blocks: page={self.page}, block={self.block}. Both must be at least 1.")

    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        return Places(new.numbers // (self.page * self.block) % new.shards, torch.zeros_like(new.numbers))
