"""Attention on what a layer holds: heads of different lengths, count weights, encoded entries, left padding.

New tokens are held before they attend, so a query sees every older entry and, of the new ones, those up to itself. The
weight of an entry enters as ``logit += log w``. :mod:`tenuto.kv.reference` says the same in the plainest way, and the
tests hold one against the other.

Shapes: queries ``[batch, heads, new, head_dim]``, output ``[batch, new, heads, head_dim]``; rows of padding are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tenuto.kv.decode import Watch, decode
from tenuto.kv.entries import Held, Store
from tenuto.kv.parts import Codec
from tenuto.kv.view import Code, Entries

__all__ = ["Observer", "attend"]

Observer = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Told of every segment's attention: segment, ``[group, queries, entries]`` float32, numbers of the queries among the
new tokens ``[queries]``."""

QUERIES, BLOCK, PAGES = 256, 2**14, 256
"""Queries whose attention is held at a time where it must be held at all; entries of all heads that are decoded at a
time, and what their number per head is a multiple of: pages of most sizes."""


def attend(
    query: torch.Tensor,
    held: Held,
    *,
    valid: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    observer: Observer | None = None,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Attention of new tokens, which are held already.

    Args:
        valid: ``[batch, new]`` bool, False for padding, which was not held; None: no padding.
        scaling: what logits are multiplied with; softcap: ``cap * tanh(logit / cap)`` where a model has it.
        observer: is shown the attention of every segment; watch: in its place, where that is computed of all at once.
    """
    whole = valid is None and all(code is None for code in held.encoded)
    seen = observer is None or watch is not None
    if (
        whole
        and seen
        and query.shape[2] == 1
        and (held.store.dense is None or softcap is not None or watch is not None)
    ):
        return decode(query, held.store, scaling, softcap, watch)
    simple = whole and softcap is None and observer is None
    length = held.store.dense if simple else None
    if length is not None:
        return (_dense if held.store.weights is None else _weighted)(query, held, length, scaling)
    heads = held.store.heads
    grouped = query.unflatten(1, (heads, -1))
    if valid is None and query.shape[2] == 1:
        every = _runs(grouped.flatten(0, 1), held, range(len(held.store.lengths)), scaling, softcap, observer, None)
        return every.view(query.shape[0], query.shape[1], 1, -1).transpose(1, 2)
    output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], held.store.values.shape[-1])
    for row, mine in enumerate(grouped):
        at = None if valid is None else valid[row].nonzero()[:, 0]
        if at is not None and not len(at):
            continue
        some, segments = mine if at is None else mine[:, :, at], range(row * heads, (row + 1) * heads)
        together = _runs(some, held, segments, scaling, softcap, observer, at).flatten(0, 1).transpose(0, 1)
        output[row, slice(None) if at is None else at] = together
    return output


def _runs(
    query: torch.Tensor,
    held: Held,
    segments: range,
    scaling: float,
    softcap: float | None,
    observer: Observer | None,
    at: torch.Tensor | None,
) -> torch.Tensor:
    """Some neighbouring segments, those together that hold alike: ``query [segments, group, new, head_dim]``, output of
    the same kind."""
    runs = _alike(held, segments)
    if len(runs) == 1:
        return _segments(query, held, runs[0], scaling, softcap, observer, at)
    found: dict[int, torch.Tensor] = {}
    for run in runs:
        chosen = query[[segment - segments.start for segment in run]]
        found |= zip(run, _segments(chosen, held, run, scaling, softcap, observer, at), strict=True)
    return torch.stack([found[segment] for segment in segments])


def _alike(held: Held, segments: range) -> list[list[int]]:
    """Segments, those together that hold as many encoded entries and as many others."""
    runs: dict[tuple[int, ...], list[int]] = {}
    for segment in segments:
        encoded, length = held.encoded[segment], held.store.lengths[segment]
        runs.setdefault((segment, -1) if encoded is None else (len(encoded), length), []).append(segment)
    return list(runs.values())


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


def _weighted(query: torch.Tensor, held: Held, length: int, scaling: float) -> torch.Tensor:
    """As :func:`_dense`, where entries have count weights."""
    store, (_, heads, new, _) = held.store, query.shape
    keys, values = store.dense_of(store.keys, length), store.dense_of(store.values, length)
    weights: Any = store.weights
    bias = store.dense_of(weights, length).log().to(query.dtype)
    if new == 1:
        grouped = query.unflatten(1, (store.heads, -1))[:, :, :, 0]
        return sdpa(grouped, keys, values, attn_mask=bias[:, :, None], scale=scaling).flatten(1, 2)[:, None]
    bias = bias.repeat_interleave(heads // store.heads, 1)[:, :, None]
    parts = []
    for start in range(0, new, QUERIES):
        some = query[:, :, start : start + QUERIES]
        stop = length - new + start + some.shape[2]
        seen = torch.ones(some.shape[2], stop, dtype=torch.bool, device=query.device).tril_(stop - some.shape[2])
        mask = bias[..., :stop].masked_fill(~seen, float("-inf"))
        part = sdpa(some, keys[:, :, :stop], values[:, :, :stop], attn_mask=mask, scale=scaling, enable_gqa=True)
        parts.append(part)
    return torch.cat(parts, 2).transpose(1, 2)


def _segments(
    query: torch.Tensor,
    held: Held,
    segments: list[int],
    scaling: float,
    softcap: float | None,
    observer: Observer | None,
    at: torch.Tensor | None,
) -> torch.Tensor:
    """KV heads that hold alike: ``query [heads, group, new, head_dim]``, output of the same kind."""
    new, length = query.shape[2], held.length(segments[0])
    weights = [held.column(segment, "weights") for segment in segments]
    if held.encoded[segments[0]] is None and weights[0] is None and softcap is None and observer is None:
        return _plain(query[0], held.store.entries(segments[0]), scaling)[None]
    bias = None
    if any(weight is not None for weight in weights):
        ones = query.new_ones(length, dtype=torch.float32)
        bias = torch.stack([ones if weight is None else weight for weight in weights]).log()
    parts = []
    for start in range(0, new, QUERIES):
        some = query[:, :, start : start + QUERIES]
        attention = _weights(some, held, segments, scaling, softcap, bias, length - new + start)
        parts.append(_mix(attention.flatten(1, 2).to(query.dtype), held, segments).view(*some.shape[:3], -1))
        if observer is not None:
            numbers = torch.arange(start, start + some.shape[2], device=query.device)
            for segment, mine in zip(segments, attention, strict=True):
                observer(segment, mine, numbers if at is None else at[numbers])
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def _plain(query: torch.Tensor, part: Entries, scaling: float) -> torch.Tensor:
    """One head in full precision: ``query [group, new, head_dim]``."""
    (group, new, _), length = query.shape, len(part)
    keys, values = part.keys[None, None], part.values[None, None]
    if new == 1:
        return sdpa(query.transpose(0, 1)[None], keys, values, scale=scaling)[0].transpose(0, 1)
    keys, values = keys.expand(1, group, -1, -1), values.expand(1, group, -1, -1)
    if new == length:
        return sdpa(query[None], keys, values, is_causal=True, scale=scaling)[0]
    seen = torch.ones(new, length, dtype=torch.bool, device=query.device).tril_(length - new)
    return sdpa(query[None], keys, values, attn_mask=seen, scale=scaling)[0]


def _weights(
    query: torch.Tensor,
    held: Held,
    segments: list[int],
    scaling: float,
    softcap: float | None,
    bias: torch.Tensor | None,
    before: int,
) -> torch.Tensor:
    """Softmax attention ``[heads, group, new, entries]`` float32; the first query is the entry number ``before``."""
    rows = query.flatten(1, 2)
    blocks = [codec.logits(codes, rows, start, stop) for codec, codes, start, stop in _decoded(held, segments)]
    blocks.append(torch.bmm(rows, _together(held.store, held.store.keys, segments).mT))
    logits = torch.cat(blocks, -1).float().view(*query.shape[:3], -1) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias[:, None, None]
    if query.shape[2] > 1:
        seen = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).tril_(before)
        logits = logits.masked_fill(~seen, float("-inf"))
    return logits.softmax(-1)


def _mix(attention: torch.Tensor, held: Held, segments: list[int]) -> torch.Tensor:
    """Values weighted by attention ``[heads, queries, entries]``."""
    values = _together(held.store, held.store.values, segments)
    output = torch.bmm(attention[..., attention.shape[-1] - values.shape[1] :], values)
    for codec, codes, start, stop in _decoded(held, segments):
        output = output + codec.mix(codes, attention[..., start:stop], start, stop)
    return output


def _together(store: Store, tensor: torch.Tensor, segments: list[int]) -> torch.Tensor:
    """Keys or values in full precision of segments of equal length, ``[heads, entries, head_dim]``."""
    parts = [tensor[store.run(segment)] for segment in segments]
    return torch.stack(parts) if len(parts) > 1 else parts[0][None]


def _decoded(held: Held, segments: list[int]) -> Iterator[tuple[Codec, list[Code], int, int]]:
    """The codes of segments, and from where to where they are decoded at a time."""
    older = [encoded for segment in segments if (encoded := held.encoded[segment]) is not None]
    if held.codec is None or not older:
        return
    step = max(BLOCK // len(segments) // PAGES, 1) * PAGES
    for start in range(0, len(older[0]), step):
        yield held.codec, [encoded.code for encoded in older], start, min(start + step, len(older[0]))
