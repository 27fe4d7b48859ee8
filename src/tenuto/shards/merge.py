"""Exact attention over keys and values that lie in several places.

Each place gives ``o_s = softmax(q K_s^T) V_s`` and ``l_s = logsumexp(q K_s^T)``. With ``l = logsumexp_s l_s`` the whole
is ``o = sum_s exp(l_s - l) o_s``, for any partition of the entries. Sums are float32, of a float64 model
float64. A place that holds nothing has ``l_s = -inf`` and adds nothing; a query that sees nothing anywhere gets 0.

Leaving out places B and reading only A is off by ``o - o_A = eps (o_B - o_A)``, where ``eps = exp(l_B - l)`` is the
softmax mass that was dropped.

Source: Rabe and Staats 2021, Self-attention Does Not Need O(n^2) Memory, https://arxiv.org/abs/2112.05682
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenuto.kv.offload.read import Part, logits, part, wide

__all__ = ["Part", "merge", "pack", "part", "rest", "unpack"]


def rest(query: torch.Tensor, keys: torch.Tensor, scaling: float, softcap: float | None = None) -> torch.Tensor:
    """Log of the sum of exponentials over keys alone, ``[heads, new]``: what leaving them out drops. Shapes as in
    :func:`part`."""
    return logits(query, keys, scaling, softcap).logsumexp(-1).flatten(0, 1)


def merge(parts: Sequence[Part]) -> Part:
    """All parts of the same queries as one; the entries of no two may overlap."""
    if len(parts) == 1:
        return parts[0]
    sums = torch.stack([one.lse for one in parts])
    whole = sums.logsumexp(0)
    weights = (sums - whole.masked_fill(whole == float("-inf"), 0.0)).exp()
    return Part(sum((w[..., None] * p.output for w, p in zip(weights, parts, strict=True)), torch.zeros(())), whole)


def pack(one: Part, dtype: torch.dtype, left: torch.Tensor | None = None) -> torch.Tensor:
    """What goes over the wire, ``[..., new, bytes]`` uint8: the output in the model's ``dtype``, its sum, and the sum
    of what was ``left`` out where that is measured: ``head_dim * itemsize + 4 (+ 4)`` bytes per query (8, of a float64
    model, for 4)."""
    sums = [x.to(wide(dtype)) for x in (one.lse, *([] if left is None else [left]))]
    columns = [one.output.to(dtype).contiguous().view(torch.uint8)]
    return torch.cat([*columns, *(x[..., None].contiguous().view(torch.uint8) for x in sums)], -1)


def unpack(
    packed: torch.Tensor, width: int, dtype: torch.dtype, measured: bool = False
) -> tuple[Part, torch.Tensor | None]:
    """The part, and the sum of what was left out, from :func:`pack`; ``width`` is the head size."""
    size, sum_dtype = width * dtype.itemsize, wide(dtype)
    output, *sums = packed.split([size, *([sum_dtype.itemsize] * (1 + measured))], -1)
    lse, *left = (x.contiguous().view(sum_dtype)[..., 0] for x in sums)
    return Part(output.contiguous().view(dtype).to(sum_dtype), lse), left[0] if left else None
