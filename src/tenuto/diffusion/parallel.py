"""Gates vote: sums over tokens are added up over the devices that share them, so that all decide alike.

Under context parallelism every device holds a part of each sample's tokens. A gate that looks at its part only may skip
where another computes, and then the two wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tenuto.diffusion.policy import alone

__all__ = ["reducer"]


def reducer(root: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """``Step.reduce`` for a denoiser: over its context-parallel group if diffusers gave it one."""
    settings: Any = getattr(root, "_parallel_config", None)  # diffusers' ModelMixin; other models have none
    context = settings.context_parallel_config if settings else None
    if context is None or dist.get_world_size() == 1:
        return alone
    group = context._flattened_mesh.get_group()

    def reduce(sums: torch.Tensor) -> torch.Tensor:
        total = sums.clone()
        dist.all_reduce(total, group=group)
        return total

    return reduce
