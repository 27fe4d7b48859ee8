"""PiAttention without a mask of tokens by tokens: the window in blocks, the multiples of a stride by residue class.

Each part is a dense attention of its own with its log-sum-exp, and the parts are joined by it. That is exact: the sets
are disjoint, so the joined output is one softmax over their union. The backward pass is exact as well and needs no
derivative of the log-sum-exp: each part's backward is given the joint output and the joint log-sum-exp, from which it
finds its share of the probabilities (as in Ring Attention, https://arxiv.org/abs/2310.01889).

Time and memory grow with ``tokens * (window + tokens / stride)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from tenuto.attention.pi_pattern import Pattern

__all__ = ["reshape"]

BLOCK = 128  # queries, the fastest of 32, 64, 128 and 256 with a window of 256
FEW = 4  # as many skips or fewer are taken one by one
FUSED = "cpu"  # the device with an operation that gives the log-sum-exp; others multiply matrices
NONE = 1e30  # a log-sum-exp that makes every probability of a row zero

Pair = tuple[torch.Tensor, torch.Tensor]
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def reshape(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, pattern: Pattern, scale: float
) -> Pair:
    """Whole rows without padding; trains on every device.

    Args:
        q: ``[batch, heads, tokens, head_dim]``; k, v: ``[batch, kv_heads, tokens, head_dim]``; bias: added to the
            logits of near keys ``[batch, heads, tokens]``.

    Returns:
        The output like ``q``, and the share of near keys in each softmax ``[batch, heads, tokens]``, without gradient.
    """
    if (group := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    apply: Any = _Joined.apply
    found: Pair = apply(q, k, v, bias, pattern, scale)
    return found


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, of a float64 model as it is."""
    return x.float() if x.dtype.itemsize < 4 else x


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> Pair:
    """Output and log-sum-exp of ``[a, b, queries, head_dim]`` against ``[a, b, keys, head_dim]``; mask: 0, -inf."""
    if q.device.type == FUSED:
        found: Pair = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
        return found[0], found[1].to(torch.float32 if q.dtype.itemsize < 4 else q.dtype)
    logits = _wide(q @ k.transpose(-1, -2) * scale + mask)
    return logits.softmax(-1).to(q.dtype) @ v, logits.logsumexp(-1)


def _attend_back(
    grad: torch.Tensor,
    given: Three,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> Three:
    """Gradients of q, k, v, from the output and log-sum-exp of a softmax of which this is a part."""
    q, k, v = given
    if q.device.type == FUSED:
        found: Three = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale
        )
        return found
    share = (_wide(q @ k.transpose(-1, -2) * scale + mask) - lse[..., None]).exp()
    inner = _wide(grad @ v.transpose(-1, -2)) - _wide(grad * out).sum(-1, keepdim=True)
    of_logits = (share * inner * scale).to(q.dtype)
    return of_logits @ k, of_logits.transpose(-1, -2) @ q, share.to(q.dtype).transpose(-1, -2) @ grad


class _Part(ABC):
    """A part of the union. All tensors are ``[rows, tokens, head_dim]``, log-sum-exps ``[rows, tokens]``.

    Attributes:
        late: the first query with a key in it; outputs and gradients of queries begin there.
    """

    late: int = 0

    @abstractmethod
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Pair:
        """Output and log-sum-exp, -inf where there is no key."""

    @abstractmethod
    def backward(self, grad: torch.Tensor, given: Three, out: torch.Tensor, lse: torch.Tensor, scale: float) -> Three:
        """Gradients of q, and of as many of the first k and v as are seen."""


def _padded(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Zeros before and after the tokens ``[rows, tokens, ...]``, no copy where there are none."""
    return pad(x, ((0, 0) * (x.dim() - 2) + (before, after))) if before or after else x


def _additive(allowed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill_(~allowed, float("-inf"))


class _Band(_Part):
    """The window: blocks of queries against the keys from ``window`` before the block to its end, a view."""

    def __init__(self, tokens: int, window: int, device: torch.device) -> None:
        window = min(window, tokens)
        self.block = min(BLOCK, max(16, window))
        self.blocks = -(-tokens // self.block)
        self.before = -(-(window - 1) // self.block) * self.block
        self.tokens, self.after = tokens, self.blocks * self.block - tokens
        q = torch.arange(self.block, device=device)[:, None] + self.before
        k = torch.arange(self.before + self.block, device=device)
        start = torch.arange(self.blocks, device=device)[:, None, None] * self.block - self.before
        self.allowed = ((k <= q) & (q - k < window) & (k + start >= 0))[None]

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        return _padded(x, 0, self.after).reshape(len(x), self.blocks, self.block, *x.shape[2:])

    def _keys(self, x: torch.Tensor) -> torch.Tensor:
        rows, _, width = x.shape
        whole = _padded(x, self.before, self.after).contiguous()
        size = (rows, self.blocks, self.before + self.block, width)
        return whole.as_strided(size, (whole.stride(0), self.block * width, width, 1))

    def _folded(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of keys from that of the view: the sum of all blocks a key is in."""
        rows, _, keys, width = grad.shape
        whole = grad.new_zeros(rows, self.before + self.blocks * self.block, width)
        for start in range(0, keys, self.block):
            part = whole[:, start : start + self.blocks * self.block].unflatten(1, (self.blocks, self.block))
            part += grad[:, :, start : start + self.block]
        return whole[:, self.before : self.before + self.tokens]

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Pair:
        mask = _additive(self.allowed, q)
        out, lse = _attend(self._queries(q), self._keys(k), self._keys(v), mask, scale)
        return out.flatten(1, 2)[:, : self.tokens], lse.flatten(1, 2)[:, : self.tokens]

    def backward(self, grad: torch.Tensor, given: Three, out: torch.Tensor, lse: torch.Tensor, scale: float) -> Three:
        q, k, v = self._queries(given[0]), self._keys(given[1]), self._keys(given[2])
        mask, lse, out = _additive(self.allowed, q), self._queries(lse), self._queries(out)
        q_grad, k_grad, v_grad = _attend_back(self._queries(grad), (q, k, v), out, lse, mask, scale)
        return q_grad.flatten(1, 2)[:, : self.tokens], self._folded(k_grad), self._folded(v_grad)


class _Sinks(_Part):
    """The first tokens, for the queries that no longer have them in the window."""

    def __init__(self, tokens: int, window: int, sinks: int, device: torch.device) -> None:
        self.late, self.sinks = window, sinks
        q, k = torch.arange(window, tokens, device=device)[:, None], torch.arange(sinks, device=device)
        self.allowed = q - k >= window

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Pair:
        first = slice(self.sinks)
        mask = _additive(self.allowed, q)
        out, lse = _attend(q[:, None, self.late :], k[:, None, first], v[:, None, first], mask, scale)
        return out[:, 0], lse[:, 0]

    def backward(self, grad: torch.Tensor, given: Three, out: torch.Tensor, lse: torch.Tensor, scale: float) -> Three:
        late, first = slice(self.late, None), slice(self.sinks)
        q, k, v = given[0][:, None, late], given[1][:, None, first], given[2][:, None, first]
        joint = out[:, None, late], lse[:, None, late]
        q_grad, k_grad, v_grad = _attend_back(grad[:, None, late], (q, k, v), *joint, _additive(self.allowed, q), scale)
        return q_grad[:, 0], k_grad[:, 0], v_grad[:, 0]


class _Residues(_Part):
    """All multiples of a stride: tokens of one residue class see each other. Keys are moved by the phase."""

    def __init__(self, tokens: int, pattern: Pattern, stride: int, phase: int, device: torch.device) -> None:
        self.stride, self.phase, self.tokens = stride, phase, tokens
        self.length = -(-tokens // stride)
        at = torch.arange(self.length * stride, device=device).view(self.length, stride).T
        allowed = pattern.skip(stride, phase, at[:, :, None], at[:, None, :] - phase)
        self.empty = ~allowed.any(-1)  # [stride, length]
        self.allowed = (allowed | self.empty[..., None])[None]

    def _split(self, x: torch.Tensor, phase: int) -> torch.Tensor:
        moved = _padded(x[:, : self.tokens - phase], phase, self.length * self.stride - self.tokens)
        return moved.reshape(len(x), self.length, self.stride, x.shape[2]).transpose(1, 2)

    def _whole(self, x: torch.Tensor, phase: int) -> torch.Tensor:
        return _padded(x.transpose(1, 2).flatten(1, 2)[:, phase : self.tokens], 0, phase)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Pair:
        q, k, v = self._split(q, 0), self._split(k, self.phase), self._split(v, self.phase)
        out, lse = _attend(q, k, v, _additive(self.allowed, q), scale)
        lse = lse.masked_fill(self.empty, float("-inf"))
        return self._whole(out, 0), self._whole(lse[..., None], 0)[..., 0]

    def backward(self, grad: torch.Tensor, given: Three, out: torch.Tensor, lse: torch.Tensor, scale: float) -> Three:
        q, k, v = self._split(given[0], 0), self._split(given[1], self.phase), self._split(given[2], self.phase)
        grad, out, lse = self._split(grad, 0), self._split(out, 0), self._split(lse[..., None], 0)[..., 0]
        lse = lse.masked_fill(self.empty, NONE)
        q_grad, k_grad, v_grad = _attend_back(grad, (q, k, v), out, lse, _additive(self.allowed, q), scale)
        return self._whole(q_grad, 0), self._whole(k_grad, self.phase), self._whole(v_grad, self.phase)


class _Shifts(_Part):
    """A few distances, one by one."""

    def __init__(self, offsets: list[int], sinks: int) -> None:
        self.offsets, self.sinks = offsets, sinks

    def _logits(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        wide = torch.float32 if q.dtype.itemsize < 4 else q.dtype
        logits = q.new_full((*q.shape[:2], len(self.offsets)), float("-inf"), dtype=wide)
        for place, offset in enumerate(self.offsets):
            from_, to = slice(self.sinks, max(q.shape[1] - offset, self.sinks)), slice(offset + self.sinks, None)
            logits[:, to, place] = (q[:, to] * k[:, from_]).sum(-1, dtype=wide) * scale
        return logits

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Pair:
        logits, out = self._logits(q, k, scale), torch.zeros_like(q)
        lse = logits.logsumexp(-1)
        share = (logits - lse.clamp(min=-NONE)[..., None]).exp().to(q.dtype)
        for place, offset in enumerate(self.offsets):
            from_, to = slice(self.sinks, max(q.shape[1] - offset, self.sinks)), slice(offset + self.sinks, None)
            out[:, to] += share[:, to, place, None] * v[:, from_]
        return out, lse

    def backward(self, grad: torch.Tensor, given: Three, out: torch.Tensor, lse: torch.Tensor, scale: float) -> Three:
        q, k, v = given
        share = (self._logits(q, k, scale) - lse[..., None]).exp()
        mean = (grad * out).sum(-1, dtype=share.dtype)
        grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for place, offset in enumerate(self.offsets):
            from_, to = slice(self.sinks, max(q.shape[1] - offset, self.sinks)), slice(offset + self.sinks, None)
            part = share[:, to, place]
            inner = (grad[:, to] * v[:, from_]).sum(-1, dtype=share.dtype) - mean[:, to]
            of_logit = (part * inner * scale).to(q.dtype)[..., None]
            grads[0][:, to] += of_logit * k[:, from_]
            grads[1][:, from_] += of_logit * q[:, to]
            grads[2][:, from_] += part.to(q.dtype)[..., None] * grad[:, to]
        return grads


def _parts(
    pattern: Pattern, tokens: int, device: torch.device
) -> tuple[list[_Part], list[tuple[slice | list[int], _Part]]]:
    """The near parts, of all heads, and the skip parts with the heads they belong to."""
    near: list[_Part] = [_Band(tokens, pattern.window, device)]
    if pattern.sinks and tokens > pattern.window:
        near.append(_Sinks(tokens, pattern.window, min(pattern.sinks, tokens), device))
    skips: list[tuple[slice | list[int], _Part]] = []
    for (stride, phase), heads in pattern.groups().items():
        if offsets := pattern.offsets(heads[0], tokens - pattern.sinks):
            few = len(offsets) <= FEW or pattern.variant != "multiples"
            part = _Shifts(offsets, pattern.sinks) if few else _Residues(tokens, pattern, stride, phase, device)
            row = heads == list(range(heads[0], heads[-1] + 1))
            skips.append((slice(heads[0], heads[-1] + 1) if row else heads, part))
    return near, skips


def _join(a: Pair, b: Pair) -> Pair:
    """One softmax from two of disjoint sets, the first never empty."""
    lse = torch.logaddexp(a[1], b[1])
    return torch.lerp(b[0], a[0], (a[1] - lse).exp().to(a[0].dtype)[..., None]), lse


class _Joined(torch.autograd.Function):
    """All parts in one softmax: ``[batch, heads, tokens, head_dim]``."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, bias: Any, pattern: Pattern, scale: float) -> Any:
        batch, heads, tokens, _ = q.shape
        near, skips = ctx.parts = _parts(pattern, tokens, q.device)
        rows = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        out, lse = near[0].forward(*rows, scale)
        for part in near[1:]:
            late = slice(part.late, None)
            out[:, late], lse[:, late] = _join((out[:, late], lse[:, late]), part.forward(*rows, scale))
        near_out, near_lse = out.unflatten(0, (batch, heads)), lse.unflatten(0, (batch, heads)) + bias
        joined, lse = near_out.clone(), near_lse.clone()
        for chosen, part in skips:
            some_q, some_k, some_v = (x[:, chosen].flatten(0, 1) for x in (q, k, v))
            found = part.forward(some_q, some_k, some_v, scale)
            skip = (found[0].unflatten(0, (batch, -1)), found[1].unflatten(0, (batch, -1)))
            joined[:, chosen], lse[:, chosen] = _join((near_out[:, chosen], near_lse[:, chosen]), skip)
        share = (near_lse - lse).exp()
        ctx.save_for_backward(q, k, v, bias, near_out, joined, lse, share)
        ctx.scale = scale
        ctx.mark_non_differentiable(share)
        return joined, share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
        q, k, v, bias, near_out, out, lse, share = ctx.saved_tensors
        near, skips = ctx.parts
        grad, near_lse, total = grad.contiguous(), lse - bias, list[torch.Tensor]()
        for heads, part, of_part in [(slice(None), part, near_lse) for part in near] + [(*skip, lse) for skip in skips]:
            given = q[:, heads].flatten(0, 1), k[:, heads].flatten(0, 1), v[:, heads].flatten(0, 1)
            joint = out[:, heads].flatten(0, 1), of_part[:, heads].flatten(0, 1)
            found = part.backward(grad[:, heads].flatten(0, 1), given, *joint, ctx.scale)
            of_q, of_k, of_v = (x.unflatten(0, (len(q), -1)) for x in found)
            if total:
                total[0][:, heads, part.late :] += of_q
                total[1][:, heads, : of_k.shape[2]] += of_k
                total[2][:, heads, : of_v.shape[2]] += of_v
            else:
                total = [of_q, of_k, of_v]
        bias_grad = ((grad * (near_out - out)).sum(-1) * share).to(bias.dtype)
        return *total, bias_grad, None, None
