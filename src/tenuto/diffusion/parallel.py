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

__all__ = ["inside_split", "reducer"]


def reducer(root: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """``Step.reduce`` for a denoiser: over its context-parallel group if diffusers gave it one.

    An all-reduce leaves the same bits on every device, so the devices cannot come to differ by rounding.
    """
    settings: Any = getattr(root, "_parallel_config", None)  # diffusers' ModelMixin (0.36 on); other models have none
    context = settings.context_parallel_config if settings else None
    if context is None:
        return alone
    group = context._flattened_mesh.get_group()  # ring and Ulysses together: all that share a sample, no others

    def reduce(sums: torch.Tensor) -> torch.Tensor:
        total = sums.clone()
        dist.all_reduce(total, group=group)
        return total

    return reduce


def inside_split(module: nn.Module) -> Any:
    """Where a block's ``forward`` is to be wrapped: on the block, or inside diffusers' hook that splits its input.

    Models that split their tokens at a block (Wan, QwenImage) and not at their own input (Flux) have such a hook; seen
    from outside of it, the block's input is whole and its output a part.
    """
    registry: Any = getattr(module, "_diffusers_hook", None)
    hooks = registry.hooks if registry else {}
    return next((hook.fn_ref for name, hook in hooks.items() if name.startswith("cp_input")), module)
