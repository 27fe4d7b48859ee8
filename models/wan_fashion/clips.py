"""Clips made on the fly from Fashion-MNIST: one garment that moves and bounces off the walls, or grows, or shrinks."""

from __future__ import annotations

import torch
from torch.nn.functional import affine_grid, grid_sample

from tenuto.zoo.clips import FRAMES, MOTIONS, SIDE

SMALL, MEDIUM, LARGE = 16.0, 21.0, 28.0
PACE = 2.0
"""Pixels per frame of a garment that moves."""


def bounce(at: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Positions as if reflected by walls at 0 and ``room``: a triangle wave."""
    return room - (at.remainder(2 * room) - room).abs()


def paths(motions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Side and top left corner of the garment, in pixels: size, left, top, each ``[n, frames]``.

    A garment that moves has the side MEDIUM and begins anywhere on its axis, centred on the other one. One that grows
    or shrinks stays in the middle; its first side varies by two pixels.
    """
    count, clock = len(motions), torch.arange(FRAMES).float()[None]
    named = {name: (motions == number).float()[:, None] for number, name in enumerate(MOTIONS)}
    drift = torch.rand(count, 1) * 2
    rise = (LARGE - 2 - SMALL) * clock / (FRAMES - 1)
    growing, shrinking = named["grows"], named["shrinks"]
    moving = 1 - growing - shrinking
    size = MEDIUM * moving + (SMALL + drift + rise) * growing + (LARGE - drift - rise) * shrinking
    room = SIDE - size
    begin = torch.rand(count, 1) * room
    across = named["right"] - named["left"]
    down = named["down"] - named["up"]
    left = torch.where(across != 0, bounce(begin + across * PACE * clock, room), room / 2)
    top = torch.where(down != 0, bounce(begin + down * PACE * clock, room), room / 2)
    return size, left, top


def clips(images: torch.Tensor, motions: torch.Tensor) -> torch.Tensor:
    """Clips ``[n, 1, frames, side, side]`` in [-1, 1] of ``images [n, 1, 28, 28]`` uint8."""
    size, left, top = (values.flatten() for values in paths(motions))
    scale = SIDE / size
    theta = torch.zeros(len(size), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2] = scale * (1 - (2 * left + size) / SIDE)
    theta[:, 1, 2] = scale * (1 - (2 * top + size) / SIDE)
    garments = (images.float() / 255).repeat_interleave(FRAMES, 0)
    grid = affine_grid(theta, [len(size), 1, SIDE, SIDE], align_corners=False)
    drawn = grid_sample(garments, grid, align_corners=False)
    return drawn.view(len(images), FRAMES, 1, SIDE, SIDE).transpose(1, 2) * 2 - 1
