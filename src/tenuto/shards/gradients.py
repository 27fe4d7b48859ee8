"""New tokens among themselves, with gradients; and the refusal of those that would have to reach what is held."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tenuto.errors import AttachError
from tenuto.shards.merge import Part, part

__all__ = ["Refused", "among_themselves"]


def among_themselves(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor,
    scaling: float,
    softcap: float | None,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens among themselves, and their sums; with gradients, which compute them again and keep no matrix."""

    def chunks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = [_chunk(*row, scaling, softcap) for row in zip(query, key, value, valid, strict=True)]
        return torch.stack([one.output for one in own]), torch.stack([one.lse for one in own])

    if learns:
        found: tuple[torch.Tensor, torch.Tensor] = checkpoint(
            chunks, query, key, value, use_reentrant=False, preserve_rng_state=False
        )
        return found
    with torch.no_grad():
        return chunks(query, key, value)


class Refused(torch.autograd.Function):
    """The output as it is; whoever asks for its gradients is told that there are none."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        raise AttachError(
            "Gradients were asked for through a sharded cache that held tokens before: keys and values that are held "
            "have none. Give the whole text in one call, or train outside the `with shard(...)` block."
        )


def _chunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> Part:
    """New tokens of one row among themselves: each sees those before it and itself."""
    new = query.shape[1]
    causal = torch.ones(new, new, dtype=torch.bool, device=query.device).tril_() & valid
    return part(query, key, value, scaling, softcap, None if new == 1 else causal)
