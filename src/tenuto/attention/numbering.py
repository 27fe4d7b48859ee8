"""Which number each token has in its row, and whether masks and positions say the same.

A retrofitted model numbers the tokens of a row from its first real one on. A mask or positions that say otherwise would
be ignored without a word, so they are refused.
"""

from __future__ import annotations

import torch

from tenuto.attention.policy import State
from tenuto.errors import InputError

__all__ = ["check_mask", "check_positions", "numbers"]


def numbers(mask: torch.Tensor | None, batch: int, before: int, tokens: int, device: torch.device) -> torch.Tensor:
    """The number of each new token ``[batch, tokens]``, negative for padding.

    Args:
        mask: ``[batch, before + tokens]``, 0 for padding; None: there is none. before: columns of earlier calls.

    Raises:
        InputError: a mask of another shape.
    """
    columns = torch.arange(before, before + tokens, device=device)[None].expand(batch, -1)
    if mask is None:
        return columns
    if mask.dim() != 2 or len(mask) != batch or mask.shape[-1] < before + tokens:
        raise InputError(
            f"An attention mask of shape {tuple(mask.shape)} was given for {before + tokens} columns. Give one of "
            f"({batch}, {before + tokens}), 0 for padding."
        )
    real = mask[:, : before + tokens].bool()
    return columns - (real.cumsum(-1) == 0).sum(-1, keepdim=True).to(device)


def check_mask(mask: torch.Tensor | None, number: torch.Tensor, before: int, state: State | None) -> None:
    """Padding comes before the first real token of a row, and is what it was in earlier calls; after the last one where
    nothing follows.

    Raises:
        InputError: it does not.
    """
    held = None if state is None else state.count
    if held is not None:
        started = (held > 0) & (number[:, 0] != held)
        if bool((started | (held <= 0) & (number[:, 0] > 0)).any()):
            raise InputError(
                "The mask hides or shows other tokens than it did when they were read, or is missing for rows that "
                "were padded. Give the same mask for what a cache holds, with 1 for each new token."
            )
    if mask is None:
        return
    real = mask[:, : before + number.shape[1]].bool()
    begins = real[:, 1:] & ~real[:, :-1]
    if bool((begins.sum(-1) + real[:, 0] > 1).any()) or (before and bool((real[:, :-1] & ~real[:, 1:]).any())):
        raise InputError(
            "The mask has padding after real tokens, in a cache or with real tokens behind it. Pad on the left."
        )


def check_positions(
    position_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    number: torch.Tensor,
    before: int,
    state: State | None,
) -> torch.Tensor | None:
    """Positions are the tokens' numbers, but for a shift of each row: that ``[batch]``, which only distances see.

    Raises:
        InputError: they are not, or the shift is not that of earlier calls.
    """
    held = None if state is None else state.shift
    if position_ids is None or position_ids.dim() != 2:
        return held
    shift, real = position_ids.to(number.device) - number, number >= 0
    if mask is not None:
        real = real & mask[:, before : before + number.shape[1]].bool().to(number.device)
    least = torch.where(real, shift, 2**62).amin(-1)
    most = torch.where(real, shift, -(2**62)).amax(-1)
    known = most >= least
    wrong = known & (most > least)
    if held is not None and state is not None and state.count is not None:
        wrong = wrong | (known & (state.count > 0) & (least != held))
    if bool(wrong.any()):
        raise InputError(
            "Positions with gaps were given, or a cache goes on from others, as for several sequences packed into one "
            "row. A retrofitted model numbers tokens itself: give one sequence a row, or leave out position_ids."
        )
    return least if held is None else torch.where(known, least, held)
