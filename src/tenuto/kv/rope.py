"""Rotary positions: turn keys or queries by a number of positions, forward or back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Rope"]


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """Rotary position embedding with fixed frequencies, the two halves of the rotated channels paired.

    Attributes:
        frequencies: radians per position ``[rotated / 2]``; channels beyond ``rotated`` are left alone.
    """

    frequencies: torch.Tensor

    def rotate(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """``x [..., n, head_dim]`` turned by ``shift [..., n]`` positions, computed in float32, in the dtype of ``x``.

        A key at position p turned by s is the key at position p + s; turning by -p undoes the embedding (up to the
        scale some variants multiply with).
        """
        half = self.frequencies.numel()
        angle = shift[..., None].float() * self.frequencies.to(x.device)
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., :half].float(), x[..., half : 2 * half].float()
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
        return torch.cat([turned, x[..., 2 * half :]], -1)
