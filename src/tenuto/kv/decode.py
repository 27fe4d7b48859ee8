"""Attention of one new token per row on entries in full precision, in as many operations whatever rows and heads hold.

Where segments are of different lengths, logits are computed block by block in one batched product, laid out by segment
for the softmax, and taken back to the blocks for the values; keys and values stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tenuto.kv.entries import Store

__all__ = ["Watch", "decode"]

Watch = Callable[[torch.Tensor], None]
"""Told of all attention at once: ``[blocks, group, slots]`` float32, where a block is a segment in a dense store."""


def decode(
    query: torch.Tensor, store: Store, scaling: float, softcap: float | None = None, watch: Watch | None = None
) -> torch.Tensor:
    """Attention of ``query [rows, heads, 1, head_dim]``; every segment holds something, its own newest entry last.

    Args:
        scaling: what logits are multiplied with; softcap: ``cap * tanh(logit / cap)`` where a model has it.
        watch: is shown the attention.
    """
    if softcap is None and watch is None and not store.block:
        return _one_call(query, store, scaling)
    segments, width = store.rows * store.heads, store.values.shape[-1]
    size = store.block or store.sizes[0]
    keys, values = store.keys.view(-1, size, store.keys.shape[-1]), store.values.view(-1, size, width)
    grouped = (query * scaling).reshape(segments, -1, query.shape[-1])
    asked = grouped.index_select(0, store.blocks.owner) if store.block else grouped
    logits = torch.bmm(asked, keys.mT).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if store.weights is not None:
        logits = logits + store.weights.log().view(-1, 1, size)
    attention = _by_segment(logits, store, segments) if store.block else _softmax(logits, store)
    if watch is not None:
        watch(attention)
    mixed = torch.bmm(attention.to(values.dtype), values)
    if store.block:
        sums = mixed.new_zeros(segments, *mixed.shape[1:], dtype=torch.float32)
        mixed = sums.index_add_(0, store.blocks.owner, mixed.float()).to(query.dtype)
    return mixed.view(query.shape[0], 1, query.shape[1], width)


def _one_call(query: torch.Tensor, store: Store, scaling: float) -> torch.Tensor:
    """A dense store whose segments do not hold the same number of entries."""
    most = max(store.lengths)
    grouped = query.reshape(store.rows, store.heads, -1, query.shape[-1])
    mask = torch.arange(most, device=query.device) < store.counts.view(store.rows, store.heads, 1, 1)
    if store.weights is not None:
        bias = store.dense_of(store.weights, most).log()[:, :, None]
        mask = bias.masked_fill(~mask, float("-inf")).to(query.dtype)
    keys, values = store.dense_of(store.keys, most), store.dense_of(store.values, most)
    output = sdpa(grouped, keys, values, attn_mask=mask, scale=scaling)
    return output.reshape(query.shape[0], 1, query.shape[1], -1)


def _softmax(logits: torch.Tensor, store: Store) -> torch.Tensor:
    """Of ``[segments, group, slots]``: slots that hold nothing get nothing."""
    if store.lengths[0] < logits.shape[-1] or store.dense is None:
        empty = torch.arange(logits.shape[-1], device=logits.device) >= store.counts[:, None, None]
        logits = logits.masked_fill(empty, float("-inf"))
    return logits.softmax(-1)


def _by_segment(logits: torch.Tensor, store: Store, segments: int) -> torch.Tensor:
    """The softmax of each segment over its blocks, ``[blocks, group, slots]`` in and out."""
    blocks, (_, group, size) = store.blocks, logits.shape
    wide = logits.index_select(0, blocks.table).view(segments, blocks.most, group, size).transpose(1, 2)
    found = _softmax(wide.reshape(segments, group, -1), store)
    back = found.view(segments, group, blocks.most, size).transpose(1, 2)
    return back.reshape(-1, group, size).index_select(0, blocks.back)
