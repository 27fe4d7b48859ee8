"""Exponential moving averages over a sequence: exact, chunked, with a carried state, several horizons at once.

For the input ``x_t`` of a head and a decay ``beta = exp(-1 / horizon)``

    s_t = beta s_{t-1} + (1 - beta) x_t,    e_t = s_t / (1 - beta^n_t)

with ``n_t`` the real tokens of the row so far: ``e_t`` is a weighted mean whose weights sum to one from the first token
on, so a constant in ``x``, such as the bias of a projection, stays what it is. Inside a chunk all pairs are one small
matrix product; between chunks the state is carried, by the same scan over chunks. Time and memory of forward and
backward grow with ``tokens * chunk``, and autograd needs no rule of its own.

Padding comes before the first real token of a row and is given as zeros: the state that it would decay is zero.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

__all__ = ["ema_mix", "ema_scan"]

CHUNK = 32  # tokens: pairs inside a chunk cost little beside reading it


def ema_scan(
    x: torch.Tensor, horizon: torch.Tensor, number: torch.Tensor, start: torch.Tensor | None = None, chunk: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The averages at every token, and the state after the last one.

    Args:
        x: ``[batch, heads, tokens, channels]``, zero for padding.
        horizon: in tokens, above 0 ``[heads, horizons]``.
        number: of each token in its row, negative for padding ``[batch, tokens]``.
        start: state of earlier calls ``[batch, heads, horizons, channels]``, None at the beginning.

    Returns:
        ``e`` ``[batch, heads, horizons, tokens, channels]`` and ``s`` ``[batch, heads, horizons, channels]``.
    """
    log = -1 / horizon
    scaled = -torch.expm1(log)[:, :, None, None] * x[:, :, None]
    states = _decayed_sums(scaled, log, _zeros(x, horizon, start), chunk)
    return states / _mass(log, number)[..., None], states[:, :, :, -1]


def ema_mix(
    x: torch.Tensor,
    horizon: torch.Tensor,
    number: torch.Tensor,
    weight: torch.Tensor,
    start: torch.Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weighted sum of the token itself and its averages, ``w_0 x_t + sum_m w_m e_m,t``, without forming them.

    The weights go into the matrix of each chunk, so the cost hardly depends on the number of horizons.

    Args:
        weight: of the token itself, then of each horizon ``[batch, heads, tokens, 1 + horizons]``.
        x, horizon, number, start: as for :func:`ema_scan`.

    Returns:
        The sum ``[batch, heads, tokens, channels]``, and the state as for :func:`ema_scan`.
    """
    batch, heads, tokens, channels = x.shape
    size = min(chunk, tokens)
    count = -(-tokens // size)
    rest = tokens - (count - 1) * size  # tokens of the last chunk
    log = -1 / horizon
    share = -torch.expm1(log)
    scaled = weight[..., 1:] / _mass(log, number).transpose(2, 3)
    if rest < size:
        x, weight, scaled = (pad(value, (0, 0, 0, size - rest)) for value in (x, weight, scaled))
    x, weight, scaled = (value.reshape(batch, heads, count, size, -1) for value in (x, weight, scaled))

    inside = share[:, :, None, None] * _powers(log, size)  # [heads, horizons, chunk, chunk]
    ends = inside[None, :, None, :, -1] @ x[:, :, :-1]  # [batch, heads, chunks - 1, horizons, channels]
    start = _zeros(x, horizon, start)
    carried = start[:, :, None]
    if count > 1:
        later = _decayed_sums(ends.transpose(2, 3), size * log, start, chunk)
        carried = torch.cat([carried, later.transpose(2, 3)], 2)

    age = torch.arange(1, size + 1, device=x.device, dtype=log.dtype)
    fade = torch.exp(log[:, None] * age[:, None])  # [heads, chunk, horizons]
    pairs = torch.einsum("bhntm,hmtu->bhntu", scaled, inside) + torch.diag_embed(weight[..., 0])
    before = (scaled * fade[:, None]) @ carried
    flat = (value.reshape(batch * heads * count, size, -1) for value in (before, pairs, x))
    out = torch.baddbmm(*flat)
    last = inside[None, :, :, rest - 1, :rest] @ x[:, :, -1, :rest] + fade[:, rest - 1, :, None] * carried[:, :, -1]
    return out.view(batch, heads, count * size, channels)[:, :, :tokens], last


def _decayed_sums(x: torch.Tensor, log: torch.Tensor, start: torch.Tensor, chunk: int) -> torch.Tensor:
    """``s_t = exp(log) s_{t-1} + x_t`` at every token, one sequence per head and horizon.

    Args:
        x: ``[batch, heads, horizons, tokens, channels]``; log: ``[heads, horizons]``; start:
            ``[batch, heads, horizons, channels]``.
    """
    batch, heads, horizons, tokens, channels = x.shape
    size = min(chunk, tokens)
    count = -(-tokens // size)
    x = pad(x, (0, 0, 0, count * size - tokens)).view(batch, heads, horizons, count, size, channels)
    inner = _powers(log, size)[:, :, None] @ x
    carried = start[:, :, :, None]
    if count > 1:
        carried = torch.cat([carried, _decayed_sums(inner[:, :, :, :-1, -1], size * log, start, chunk)], 3)
    age = torch.arange(1, size + 1, device=x.device, dtype=log.dtype)
    fade = torch.exp(log[..., None, None] * age)  # [heads, horizons, 1, chunk]
    states = inner + fade[..., None] * carried[..., None, :]
    return states.view(batch, heads, horizons, count * size, channels)[:, :, :, :tokens]


def _powers(log: torch.Tensor, size: int) -> torch.Tensor:
    """``exp(log (t - u))`` for ``u <= t``, else 0 ``[heads, horizons, size, size]``."""
    place = torch.arange(size, device=log.device, dtype=log.dtype)
    apart = place[:, None] - place
    return torch.exp(log[..., None, None] * apart.clamp(min=0)) * (apart >= 0)


def _mass(log: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """``1 - beta^n`` ``[batch, heads, horizons, tokens]``; of padding as of a first token."""
    count = (number + 1).clamp(min=1).to(log.dtype)
    return -torch.expm1(log[None, ..., None] * count[:, None, None])


def _zeros(x: torch.Tensor, horizon: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    return x.new_zeros(x.shape[0], *horizon.shape, x.shape[-1]) if start is None else start
