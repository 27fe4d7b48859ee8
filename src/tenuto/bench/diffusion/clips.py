"""How good clips are: their frames and their motion beside the uncached ones', and the garment that was asked for.

Clips are float ``[n, frames, 1, height, width]`` in [0, 1].
"""

from __future__ import annotations

import torch
from torch.nn.functional import affine_grid, grid_sample

from tenuto.bench.diffusion.scores import FashionJudge, psnr
from tenuto.errors import InputError
from tenuto.zoo.clips import class_of

__all__ = ["class_accuracy", "cut_out", "frame_psnr", "motion_error"]

SIDE = 28
SEEN = 0.15
"""Brightness from which a pixel belongs to the garment."""


def frame_psnr(clips: torch.Tensor, reference: torch.Tensor) -> list[float]:
    """PSNR in dB by the number of the frame, mean over clips."""
    pairs = zip(clips.unbind(1), reference.unbind(1), strict=True)
    return [float(psnr(mine, theirs).mean()) for mine, theirs in pairs]


def motion_error(clips: torch.Tensor, reference: torch.Tensor) -> float:
    """How far differences of consecutive frames are from the reference's: ``|dx - dx*| / |dx*|``, mean over clips.

    Norms are Euclidean, over a clip. 0: every change from frame to frame is the reference's. 1 is what a clip has that
    stands still. Clips whose reference stands still do not count; 0 if none moves.

    Raises:
        InputError: the shapes differ, or there are fewer than two frames.
    """
    if clips.shape != reference.shape or clips.ndim != 5 or clips.shape[1] < 2:
        raise InputError(
            f"Clips {tuple(clips.shape)} and reference {tuple(reference.shape)} must both be "
            "[n, frames, channels, height, width] with two or more frames, of one shape."
        )
    mine, theirs = (given.double().diff(dim=1).flatten(1) for given in (clips, reference))
    size = theirs.norm(dim=1)
    moves = size > 0
    return float(((mine - theirs).norm(dim=1)[moves] / size[moves]).mean()) if bool(moves.any()) else 0.0


def cut_out(frames: torch.Tensor) -> torch.Tensor:
    """The garment of each of ``frames [n, 1, height, width]`` as Fashion-MNIST shows it, ``[n, 1, 28, 28]``: its longer
    side fills the picture, and it stands in the middle. A frame without one stays as it is, resized."""
    height, width = frames.shape[-2:]
    seen = frames[:, 0] > SEEN
    x, w = _extent(seen.any(1), width)
    y, h = _extent(seen.any(2), height)
    side = torch.maximum(w, h)
    theta = frames.new_zeros(len(frames), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side / width, side / height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * x / width - 1, 2 * y / height - 1
    return grid_sample(
        frames, affine_grid(theta, [len(frames), 1, SIDE, SIDE], align_corners=False), align_corners=False
    )


def _extent(seen: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle and width ``[n]`` in pixels of what is seen in ``seen [n, length]``; the whole where that is nothing."""
    place = torch.arange(length, device=seen.device)
    first = torch.where(seen, place, length).amin(1)
    last = torch.where(seen, place, -1).amax(1) + 1
    empty = last == 0
    first, last = torch.where(empty, 0, first), torch.where(empty, length, last)
    return (first + last) / 2, (last - first).float()


def class_accuracy(clips: torch.Tensor, prompts: torch.Tensor, judge: FashionJudge) -> float:
    """Fraction of all frames in which the classifier sees the class asked for, in the garment cut out."""
    frames = clips.flatten(0, 1)
    return judge.class_accuracy(cut_out(frames), class_of(prompts).repeat_interleave(clips.shape[1]))
