"""Attention over what was gathered for one row, and the mass of what was not."""

from __future__ import annotations

import torch

__all__ = ["logits", "mass", "read"]

QUERIES = 256
"""Queries whose attention is held at a time."""


def logits(query: torch.Tensor, keys: torch.Tensor, scaling: float, softcap: float | None) -> torch.Tensor:
    """``[kv_heads, group, new, entries]`` float32 of ``query [heads, new, head_dim]``, ``keys [kv_heads, ...]``."""
    grouped = query.float().unflatten(0, (keys.shape[0], -1))
    found = torch.einsum("hgqd,hnd->hgqn", grouped, keys.float()) * scaling
    return found if softcap is None else softcap * torch.tanh(found / softcap)


def read(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the newest tokens, softmax in float32.

    Args:
        query: ``[heads, new, head_dim]``; keys, values: ``[kv_heads, entries, head_dim]``, the new tokens' last and in
            order, the others in any order.

    Returns:
        ``[heads, new, head_dim]``, and the log of the sum of exponentials ``[heads, new]`` float32.
    """
    outputs, sums = [], []
    new, length = query.shape[1], keys.shape[1]
    for start in range(0, new, QUERIES):
        some = query[:, start : start + QUERIES]
        found = logits(some, keys, scaling, softcap)
        if new > 1:
            seen = torch.ones(found.shape[2:], dtype=torch.bool, device=found.device).tril_(length - new + start)
            found = found.masked_fill(~seen, float("-inf"))
        outputs.append(torch.einsum("hgqn,hnd->hgqd", found.softmax(-1), values.float()).flatten(0, 1))
        sums.append(found.logsumexp(-1).flatten(0, 1))
    return torch.cat(outputs, 1).to(query.dtype), torch.cat(sums, 1)


def mass(query: torch.Tensor, lse: torch.Tensor, keys: torch.Tensor, scaling: float, softcap: float | None) -> float:
    """Share of the attention that left-out ``keys`` would have had beside what was read, mean over heads.

    ``query [heads, head_dim]``; ``lse [heads]`` of what was read.
    """
    left = logits(query[:, None], keys, scaling, softcap).logsumexp(-1).flatten()
    return float((left - torch.logaddexp(left, lse)).exp().mean())
