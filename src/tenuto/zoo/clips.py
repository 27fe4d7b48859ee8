"""What the bundled video model is asked for: a garment and how it moves, as tokens for cross attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["CLASSES", "FRAMES", "MOTIONS", "PROMPTS", "SIDE", "TOKEN_WIDTH", "class_of", "motion_of", "tokens"]

FRAMES = 8
SIDE = 32
CLASSES = 10
MOTIONS = ("right", "left", "down", "up", "grows", "shrinks")
PROMPTS = CLASSES * len(MOTIONS)
"""A prompt is a number: class + 10 * motion."""
TOKEN_WIDTH = CLASSES + len(MOTIONS) + 2


def class_of(prompts: torch.Tensor) -> torch.Tensor:
    """The garment's class, 0 to 9, of each prompt."""
    return prompts % CLASSES


def motion_of(prompts: torch.Tensor) -> torch.Tensor:
    """The number in :data:`MOTIONS` of each prompt."""
    return prompts // CLASSES


def tokens(prompts: Sequence[int] | torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """Conditioning ``[n, 2, TOKEN_WIDTH]``: a one-hot token for the class and one for the motion.

    Args:
        prompts: numbers below :data:`PROMPTS`; kept: bool ``[n]``, False for those who get the two null tokens.
    """
    given = torch.as_tensor(prompts)
    words = torch.stack([class_of(given), CLASSES + motion_of(given)], 1)
    if kept is not None:
        words = torch.where(kept[:, None], words, torch.tensor([TOKEN_WIDTH - 2, TOKEN_WIDTH - 1]))
    return torch.nn.functional.one_hot(words, TOKEN_WIDTH).float()
