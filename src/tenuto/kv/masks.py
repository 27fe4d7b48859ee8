"""Attention masks: which tokens one of four dimensions hides, and whether it hides nothing else.

The engine masks by itself: a token sees what is held of its row up to itself, and padding is never held. A mask says
more than that where image tokens see each other, where sequences are packed into one row, or where it is a bias.
"""

from __future__ import annotations

from typing import Any

import torch

from tenuto.errors import AttachError

__all__ = ["padding_of", "says_no_more"]


def padding_of(mask: Any, new: int) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """The mask of two dimensions that a call's ``attention_mask`` comes to, and those of four that it was made of.

    Args:
        mask: ``[batch, tokens]``, ``[batch, heads, new, tokens]``, one of these per kind of layer (a dict), or None.

    Raises:
        AttachError: it hides other tokens than later ones and padding, or is a bias.
    """
    if isinstance(mask, dict):
        if "full_attention" not in mask:
            raise AttachError(f"Masks for {', '.join(mask)} were given, none for full attention. Give [batch, tokens].")
        mask = mask["full_attention"]
    if mask is None or mask.dim() == 2:
        return mask, []
    if mask.dim() != 4 or mask.shape[-2] != new or mask.shape[-1] < new:
        raise AttachError(f"An attention mask of shape {list(mask.shape)} was given. Give [batch, tokens], or none.")
    seen = _allowed(mask)[:, 0].any(1)
    if not says_no_more(mask, seen):
        raise AttachError(
            "An attention mask of four dimensions was given that is not the causal one of a padded batch (image tokens "
            "that see each other, packed sequences, a bias): an attached model masks by itself. Give a mask "
            "[batch, tokens], or none; leave the `with` block for this call."
        )
    return seen.to(torch.int64), [mask]


def says_no_more(mask: torch.Tensor, valid: torch.Tensor) -> bool:
    """Whether a mask ``[batch or 1, heads or 1, new, tokens]`` hides later tokens and those that are not valid, and
    nothing else, from all tokens that are ``valid [batch, tokens]``."""
    new, tokens = mask.shape[-2:]
    if tokens != valid.shape[-1]:
        return False
    causal = torch.ones(new, tokens, dtype=torch.bool, device=mask.device).tril_(tokens - new)
    wanted = (causal & valid[:, None].to(mask.device))[:, None]
    real = valid[:, None, tokens - new :, None].to(mask.device)
    return bool(((_allowed(mask) == wanted) | ~real).all()) and not _biased(mask)


def _allowed(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype is torch.bool else mask == 0 if mask.is_floating_point() else mask != 0


def _biased(mask: torch.Tensor) -> bool:
    """Whether a mask of numbers to add has others than 0 and what hides."""
    return mask.is_floating_point() and bool(((mask != 0) & (mask > -1e4)).any())
