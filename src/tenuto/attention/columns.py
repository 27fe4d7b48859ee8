"""Columns and chunks of a batch whose rows begin at different columns: ``[batch, kv_heads, columns, head_dim]``."""

from __future__ import annotations

import torch

__all__ = ["chunks_of", "first_tokens", "joined", "last", "placed"]


def joined(held: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    """Earlier columns and new ones, ``[batch, kv_heads, columns, head_dim]``."""
    return new if held is None else torch.cat([held, new], 2)


def first_tokens(held: torch.Tensor | None, new: torch.Tensor, number: torch.Tensor, count: int) -> torch.Tensor:
    """The tokens 0 to ``count - 1`` of each row ``[batch, kv_heads, count, head_dim]``, zero where they are to come.

    Args:
        held: what earlier calls gave, None at first; new: ``[batch, kv_heads, tokens, head_dim]``; number:
            ``[batch, tokens]``.
    """
    place = torch.arange(count, device=new.device)[None] - number[:, :1]  # column of each in this call [batch, count]
    here = (place >= 0) & (place < new.shape[2])
    index = place.clamp(0, new.shape[2] - 1)[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
    found = new.gather(2, index) * here[:, None, :, None].to(new.dtype)
    return found if held is None else held + found


def last(columns: torch.Tensor, most: int) -> torch.Tensor:
    """The last columns, at most so many, by themselves: nothing else is kept alive."""
    return columns[:, :, columns.shape[2] - min(columns.shape[2], most) :].clone()


def chunks_of(columns: torch.Tensor, token: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """The tokens of each chunk ``token`` ``[batch, chunks, chunk]`` from columns whose last ones have ``number``."""
    batch, heads, length, width = columns.shape
    place = token - (number[:, -1] + 1 - length)[:, None, None]
    index = place.clamp(0, length - 1).flatten(1)[:, None, :, None].expand(-1, heads, -1, width)
    return columns.gather(2, index).view(batch, heads, *token.shape[1:], width)


def placed(old: torch.Tensor | None, new: torch.Tensor, which: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Summaries with new ones put where their numbers say; rows may be at different numbers."""
    have = 0 if old is None else old.shape[2]
    if bool(valid.all()) and bool((which[:, 0] == have).all()):
        return new if old is None else torch.cat([old, new], 2)
    batch, heads, _, width = new.shape
    room = torch.zeros(batch, heads, max(int(torch.where(valid, which, -1).max()) + 1 - have, 0) + 1, width)
    room = room.to(new)
    whole = room if old is None else torch.cat([old, room], 2)
    spare = whole.shape[2] - 1  # where invalid ones go
    index = torch.where(valid, which, spare)[:, None, :, None].expand(-1, heads, -1, width)
    return whole.scatter(2, index, new)[:, :, :spare]
