"""Attention on what a layer holds: heads of different lengths, count weights, encoded entries, left padding.

New tokens are held before they attend, so a query sees every older entry and, of the new ones, those up to itself. The
weight of an entry enters as ``logit += log w``. :mod:`tenuto.kv.reference` says the same in the plainest way, and the
tests hold one against the other.

Shapes: queries ``[batch, heads, new, head_dim]``, output ``[batch, new, heads, head_dim]``; rows of padding are zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tenuto.kv.store import Held

__all__ = ["Observer", "attend"]

Observer = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Told of every segment's attention: segment, ``[group, queries, entries]`` float32, numbers of the queries among the
new tokens ``[queries]``."""

QUERIES, BLOCK = 256, 4096
"""Queries whose attention is held at a time where it must be held at all, and entries decoded at a time."""


def attend(
    query: torch.Tensor,
    held: Held,
    *,
    valid: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    observer: Observer | None = None,
) -> torch.Tensor:
    """Attention of new tokens, which are held already.

    Args:
        valid: ``[batch, new]`` bool, False for padding, which was not held; None: no padding.
        scaling: what logits are multiplied with; softcap: ``cap * tanh(logit / cap)`` where a model has it.
        observer: is shown the attention of every segment.
    """
    length = held.store.dense if held.plain and valid is None and softcap is None and observer is None else None
    if length is not None:
        return _dense(query, held, length, scaling)
    batch, heads, new, _ = query.shape
    group = heads // held.store.heads
    output = query.new_zeros(batch, heads, new, held.store.values.shape[-1])
    for segment in range(batch * held.store.heads):
        row, head = divmod(segment, held.store.heads)
        mine = slice(head * group, (head + 1) * group)
        if valid is None:
            output[row, mine] = _segment(query[row, mine], held, segment, scaling, softcap, observer, None)
            continue
        at = valid[row].nonzero()[:, 0]
        if len(at):
            found = _segment(query[row, mine][:, at], held, segment, scaling, softcap, observer, at)
            output[row, mine] = output[row, mine].index_copy(1, at, found)
    return output.transpose(1, 2)


def _dense(query: torch.Tensor, held: Held, length: int, scaling: float) -> torch.Tensor:
    store, (batch, heads, new, width) = held.store, query.shape
    keys, values = store.dense_of(store.keys, length), store.dense_of(store.values, length)
    if new == 1:  # the queries of a group are the rows of one small matrix
        grouped = query.reshape(batch, store.heads, heads // store.heads, width)
        output = sdpa(grouped, keys, values, scale=scaling)
        return output.reshape(batch, 1, heads, -1)
    if new == length:
        output = sdpa(query, keys, values, is_causal=True, scale=scaling, enable_gqa=True)
    else:
        seen = torch.ones(new, length, dtype=torch.bool, device=query.device).tril_(length - new)
        output = sdpa(query, keys, values, attn_mask=seen, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2)


def _segment(
    query: torch.Tensor,
    held: Held,
    segment: int,
    scaling: float,
    softcap: float | None,
    observer: Observer | None,
    at: torch.Tensor | None,
) -> torch.Tensor:
    """One row and KV head: ``query [group, new, head_dim]``, output of the same kind."""
    new, length = query.shape[1], held.length(segment)
    weights = held.column(segment, "weights")
    if held.encoded[segment] is None and weights is None and softcap is None and observer is None:
        part = held.store.entries(segment)
        keys, values = part.keys[None, None], part.values[None, None]
        if new == 1:
            return sdpa(query.transpose(0, 1)[None], keys, values, scale=scaling)[0].transpose(0, 1)
        keys, values = keys.expand(1, query.shape[0], -1, -1), values.expand(1, query.shape[0], -1, -1)
        if new == length:
            return sdpa(query[None], keys, values, is_causal=True, scale=scaling)[0]
        seen = torch.ones(new, length, dtype=torch.bool, device=query.device).tril_(length - new)
        return sdpa(query[None], keys, values, attn_mask=seen, scale=scaling)[0]
    bias = None if weights is None else weights.log()
    parts = []
    for start in range(0, new, QUERIES):
        some = query[:, start : start + QUERIES]
        attention = _weights(some, held, segment, scaling, softcap, bias, length - new + start)
        parts.append(_mix(attention.to(query.dtype), held, segment))
        if observer is not None:
            numbers = torch.arange(start, start + some.shape[1], device=query.device)
            observer(segment, attention, numbers if at is None else at[numbers])
    return torch.cat(parts, 1)


def _weights(
    query: torch.Tensor,
    held: Held,
    segment: int,
    scaling: float,
    softcap: float | None,
    bias: torch.Tensor | None,
    before: int,
) -> torch.Tensor:
    """Softmax attention ``[group, new, entries]`` float32; the first query is the entry number ``before``."""
    part, encoded = held.store.entries(segment), held.encoded[segment]
    blocks = []
    if encoded is not None and held.codec is not None:
        for start in range(0, len(encoded), BLOCK):
            stop = min(start + BLOCK, len(encoded))
            blocks.append(held.codec.logits(encoded.code, query, start, stop))
    blocks.append(query @ part.keys.T)
    logits = torch.cat(blocks, -1).float() * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    if query.shape[1] > 1:
        seen = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device).tril_(before)
        logits = logits.masked_fill(~seen, float("-inf"))
    return logits.softmax(-1)


def _mix(attention: torch.Tensor, held: Held, segment: int) -> torch.Tensor:
    """Values weighted by attention ``[group, new, entries]``."""
    part, encoded = held.store.entries(segment), held.encoded[segment]
    if encoded is None or held.codec is None:
        return attention @ part.values
    output = attention[..., len(encoded) :] @ part.values
    for start in range(0, len(encoded), BLOCK):
        stop = min(start + BLOCK, len(encoded))
        output = output + held.codec.mix(encoded.code, attention[..., start:stop], start, stop)
    return output
