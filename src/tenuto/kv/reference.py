"""Attention on what a layer holds, said in the plainest way: one query at a time, in float64, on decoded entries."""

from __future__ import annotations

import torch

from tenuto.kv.entries import Held

__all__ = ["reference"]


def reference(
    query: torch.Tensor,
    held: Held,
    *,
    valid: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """As :func:`tenuto.kv.attend.attend`, one query at a time."""
    batch, heads, new, _ = query.shape
    group = heads // held.store.heads
    output = query.new_zeros(batch, new, heads, held.store.values.shape[-1])
    for row in range(batch):
        at = list(range(new)) if valid is None else valid[row].nonzero()[:, 0].tolist()
        for head in range(heads):
            segment = row * held.store.heads + head // group
            keys, values = held.all_keys(segment).double(), held.all_values(segment).double()
            weights = held.column(segment, "weights")
            for number, token in enumerate(at):
                seen = len(keys) - len(at) + number + 1
                logits = keys[:seen] @ query[row, head, token].double() * scaling
                logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
                logits = logits if weights is None else logits + weights[:seen].double().log()
                output[row, token, head] = (logits.softmax(-1) @ values[:seen]).to(query.dtype)
    return output
