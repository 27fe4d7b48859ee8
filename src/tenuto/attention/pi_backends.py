"""Other ways to compute what ``reshape`` (``pi_reshape.py``) computes: plainly, with FlexAttention, for one query.

The gate ``sigmoid(lse_near - lse_skip + bias)`` between two softmaxes is one softmax over both sets with ``bias`` added
to the logits of the near one, which is how all of them are written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import dropout as drop

from tenuto.attention.pi_pattern import Pattern
from tenuto.attention.pi_reshape import Pair, reshape
from tenuto.errors import InputError

__all__ = ["BACKENDS", "dense", "flex", "masked", "step"]

QUERIES = 128  # at once, in `masked`


def dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, pattern: Pattern, scale: float
) -> Pair:
    """The reference: a mask of all tokens by all tokens. See ``reshape`` for the arguments."""
    at = torch.arange(q.shape[2], device=q.device)[None]
    return _masked(q, k, v, bias, pattern, scale, (at, at))


def masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    pattern: Pattern,
    scale: float,
    numbers: Pair,
    dropout: float = 0.0,
) -> Pair:
    """The reference for any queries and keys, a few queries at a time: chunks after the first, padded rows.

    Args:
        numbers: of the queries ``[batch, queries]`` and the keys ``[batch, keys]`` in their rows, negative for what is
            to be seen by nobody.
        dropout: the chance of an attention weight to be left out.
    """
    found = []
    for start in range(0, q.shape[2], QUERIES):
        part = slice(start, start + QUERIES)
        some = numbers[0][:, part], numbers[1]
        found.append(_masked(q[:, :, part], k, v, bias[:, :, part], pattern, scale, some, dropout))
    return torch.cat([out for out, _ in found], 2), torch.cat([share for _, share in found], 2)


def _masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    pattern: Pattern,
    scale: float,
    numbers: Pair,
    dropout: float = 0.0,
) -> Pair:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    at_q, at_k = numbers[0][:, None, :, None], numbers[1][:, None, None]
    head = torch.arange(q.shape[1], device=q.device)[:, None, None]
    near = pattern.near(at_q, at_k)
    seen = pattern.mask_fn(q.device)(None, head, at_q, at_k)
    seen = seen | ~seen.any(-1, keepdim=True)  # padding attends to anything, and nobody looks
    logits = (q @ k.transpose(-1, -2) * scale).float() if q.dtype.itemsize < 4 else q @ k.transpose(-1, -2) * scale
    logits = (logits + near * bias[..., None]).masked_fill(~seen, float("-inf"))
    share = logits.softmax(-1)
    kept = drop(share, dropout) if dropout else share
    return kept.to(q.dtype) @ v, (share * near).sum(-1).detach()


def step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    pattern: Pattern,
    scale: float,
    numbers: Pair,
    first: torch.Tensor,
) -> Pair:
    """One query per row, that of the last column: only the keys of its pattern are read.

    Args:
        numbers: as in :func:`masked`; first: the columns of the sinks ``[batch, sinks]``.
    """
    batch, kv_heads, columns, width = k.shape
    window = slice(max(columns - pattern.window, 0), None)
    far = _skips(pattern, columns, kv_heads, q.device)
    index = far.clamp(min=0)
    at, query = numbers[1], numbers[0][:, -1:]
    skips = (far >= 0) & (at[:, index] >= pattern.sinks)  # [batch, kv_heads, group or 1, skips]
    sinks = (query >= torch.arange(pattern.sinks, device=q.device))[:, None, None]  # [batch, 1, 1, sinks]
    window_seen = (at[:, window] >= pattern.sinks)[:, None, None]
    spot = first.clamp(0, columns - 1)[:, None, :, None].expand(-1, kv_heads, -1, width)
    rows = torch.arange(kv_heads, device=q.device)[:, None, None]
    grouped = (q[:, :, 0] * scale).view(batch, kv_heads, -1, width)
    near_bias = bias[:, :, 0].view(batch, kv_heads, -1, 1)
    near_k = torch.cat([k.gather(2, spot), k[:, :, window]], 2)
    near_v = torch.cat([v.gather(2, spot), v[:, :, window]], 2)
    near = grouped @ near_k.transpose(-1, -2) + near_bias
    near = near.masked_fill(~torch.cat([sinks, window_seen], -1), float("-inf"))
    far_k, far_v = k[:, rows, index], v[:, rows, index]  # [batch, kv_heads, group or 1, skips, head_dim]
    skip = (far_k @ grouped[..., None])[..., 0] if far.shape[1] > 1 else grouped @ far_k[:, :, 0].transpose(-1, -2)
    logits = torch.cat([near, skip.masked_fill(~skips, float("-inf"))], -1)
    wide = torch.promote_types(q.dtype, torch.float32)
    share = logits.to(wide).softmax(-1).nan_to_num().to(q.dtype)  # a row of padding alone has no key
    of_near, of_far = share.split([near.shape[-1], skip.shape[-1]], -1)
    out = of_near @ near_v
    out = out + ((of_far[..., None, :] @ far_v)[..., 0, :] if far.shape[1] > 1 else of_far @ far_v[:, :, 0])
    return out.reshape(batch, -1, 1, width), of_near.sum(-1).reshape(batch, -1, 1).detach()


def _skips(pattern: Pattern, columns: int, kv_heads: int, device: torch.device) -> torch.Tensor:
    """Columns of the skips of the last column's query, negative for none ``[kv_heads, group or 1, skips]``."""
    offsets = _offsets(pattern, 1 << (columns - 1).bit_length(), device)
    most = int((offsets < columns).sum(-1).max())
    found = columns - 1 - offsets[:, :most]
    heads = 1 if pattern.shared else len(offsets) // kv_heads
    return found.view(len(found) // heads, heads, most).expand(kv_heads, heads, most)


@lru_cache(maxsize=64)
def _offsets(pattern: Pattern, length: int, device: torch.device) -> torch.Tensor:
    """The distances of the skips below ``length``, and from there on ``length`` ``[heads or 1 if shared, skips]``."""
    rows = [pattern.offsets(head, length) for head in range(1 if pattern.shared else len(pattern.strides))]
    most = max(map(len, rows))
    return torch.tensor([row + [length] * (most - len(row)) for row in rows], device=device, dtype=torch.long)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


@lru_cache(maxsize=64)
def _blocks(pattern: Pattern, tokens: int, device: torch.device) -> BlockMask:
    heads = None if pattern.shared else len(pattern.strides)
    seen = pattern.mask_fn(device)

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        return seen(b, h, q, k)

    return create_block_mask(mask, None, heads, tokens, tokens, device=str(device))


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, pattern: Pattern, scale: float) -> Pair:
    """FlexAttention, compiled: whole rows without padding; it skips blocks of 128 by 128 tokens without a key.

    It does not tell the share of near keys: NaN is given for it.

    Raises:
        InputError: gradients are asked for on a CPU, where FlexAttention has none.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, bias)):
        raise InputError("FlexAttention has no backward pass on a CPU. Train with backend=reshape, or on a GPU.")
    bias = bias.contiguous()

    def score(logit: Any, b: Any, h: Any, at_q: Any, at_k: Any) -> Any:
        return logit + torch.where(pattern.near(at_q, at_k), bias[b, h, at_q], 0.0)

    mask = _blocks(pattern, q.shape[2], q.device)
    out = _compiled()(q, k, v, score, mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out, torch.full_like(bias, float("nan"))


Backend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Pattern, float], Pair]
BACKENDS: dict[str, Backend] = {"reshape": reshape, "dense": dense, "flex": flex}
