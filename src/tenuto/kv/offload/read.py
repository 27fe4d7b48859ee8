"""Attention over what was gathered for one row, and the mass of what was not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Part", "logits", "mass", "part", "read", "wide"]

QUERIES = 256
"""Queries whose attention is held at a time."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums over a model's ``dtype`` are held in: float32, and float64 for a model of that."""
    return torch.promote_types(dtype, torch.float32)


def logits(query: torch.Tensor, keys: torch.Tensor, scaling: float, softcap: float | None) -> torch.Tensor:
    """``[kv_heads, group, new, entries]`` of ``query [heads, new, head_dim]``, ``keys [kv_heads, ...]``, in
    :func:`wide`."""
    dtype = wide(query.dtype)
    grouped = (query.to(dtype) * scaling).unflatten(0, (keys.shape[0], -1))
    found = torch.einsum("hgqd,hnd->hgqn", grouped, keys.to(dtype))
    return found if softcap is None else softcap * torch.tanh(found / softcap)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Attention over some of the entries.

    Attributes:
        output: ``[..., new, head_dim]``; lse: log of the sum of exponentials ``[..., new]``; both in
            :func:`wide`.
    """

    output: torch.Tensor
    lse: torch.Tensor


def part(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    visible: torch.Tensor | None = None,
) -> Part:
    """Attention over some entries, ``[heads, new, ...]``; of a query that sees nothing, 0 and ``-inf``.

    Args:
        query: ``[heads, new, head_dim]``; keys, values: ``[kv_heads, entries, head_dim]``.
        scaling: what logits are multiplied with; softcap: ``cap * tanh(logit / cap)`` where a model has it.
        visible: ``[new, entries]`` bool; None: every query sees every entry.
    """
    outputs, sums = [], []
    for start in range(0, query.shape[1], QUERIES):
        found = logits(query[:, start : start + QUERIES], keys, scaling, softcap)
        if visible is not None:
            found = found.masked_fill(~visible[start : start + QUERIES], float("-inf"))
        top = found.amax(-1, keepdim=True) if found.shape[-1] else found.new_zeros(*found.shape[:-1], 1)
        top = top.masked_fill(top == float("-inf"), 0.0)
        weights = (found - top).exp()
        total = weights.sum(-1, keepdim=True)
        output = torch.einsum("hgqn,hnd->hgqd", weights, values.to(found.dtype))
        outputs.append((output / total.masked_fill(total == 0, 1.0)).flatten(0, 1))
        sums.append((total.log() + top)[..., 0].flatten(0, 1))
    return Part(torch.cat(outputs, 1), torch.cat(sums, 1))


def read(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of the newest tokens, softmax in :func:`wide`.

    Args:
        query: ``[heads, new, head_dim]``; keys, values: ``[kv_heads, entries, head_dim]``, the new tokens' last and in
            order, the others in any order.

    Returns:
        ``[heads, new, head_dim]``, and the log of the sum of exponentials ``[heads, new]``.
    """
    new, length, blocks = query.shape[1], keys.shape[1], list[Part]()
    for start in range(0, new, QUERIES):
        some, seen = query[:, start : start + QUERIES], None
        if new > 1:
            seen = torch.ones(some.shape[1], length, dtype=torch.bool, device=query.device)
            seen = seen.tril_(length - new + start)
        blocks.append(part(some, keys, values, scaling, softcap, seen))
    return torch.cat([b.output for b in blocks], 1).to(query.dtype), torch.cat([b.lse for b in blocks], 1)


def mass(query: torch.Tensor, lse: torch.Tensor, keys: torch.Tensor, scaling: float, softcap: float | None) -> float:
    """Share of the attention that left-out ``keys`` would have had beside what was read, mean over heads.

    ``query [heads, head_dim]``; ``lse [heads]`` of what was read.
    """
    left = logits(query[:, None], keys, scaling, softcap).logsumexp(-1).flatten()
    return float((left - torch.logaddexp(left, lse)).exp().mean())
