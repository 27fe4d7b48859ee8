"""Round robin: page after page to shard after shard.

Every shard holds the same number of tokens but for one page, whatever the text is. With all shards read this is decode
context parallelism, as vLLM and SGLang ship it, interleaved by pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenuto.shards.policy import Arrivals, Placement, Places

__all__ = ["RoundRobin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin(Placement):
    """Page ``p`` of a row is on shard ``p mod shards``."""

    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        return Places(new.numbers // self.page % new.shards, torch.zeros_like(new.numbers))
