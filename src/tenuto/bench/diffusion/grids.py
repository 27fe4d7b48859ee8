"""Pictures of pictures: a grid of samples, and a grid of what differs from the uncached ones."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image

__all__ = ["GAIN", "difference", "grid", "save_png"]

COLUMNS, ROWS = 10, 6
GAIN = 5
"""Differences are shown this many times as large."""
SMALL = 64
FRAME_MS = 125


def grid(pictures: torch.Tensor) -> torch.Tensor:
    """Tile the first pictures ``[n, channels, height, width]`` into one ``[channels, height, width]``.

    Ten columns, so that with labels in turn a column is a class; six rows at most. Small pictures are doubled in size
    without smoothing; a missing last one is black. Clips ``[n, frames, channels, height, width]`` become one clip.
    """
    if pictures.ndim == 5:
        return torch.stack([grid(frames) for frames in pictures.unbind(1)])
    n, channels, height, width = pictures.shape
    columns = min(n, COLUMNS)
    rows = min(-(-n // columns), ROWS)
    tiles = pictures.new_zeros(rows * columns, channels, height, width)
    tiles[: min(n, len(tiles))] = pictures[: len(tiles)]
    whole = tiles.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    whole = whole.reshape(channels, rows * height, columns * width)
    return whole.repeat_interleave(2, 1).repeat_interleave(2, 2) if max(height, width) < SMALL else whole


def _image(values: torch.Tensor) -> Image.Image:
    """Of uint8 ``[channels, height, width]``."""
    array = values.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def difference(pictures: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``|pictures - reference|``, :data:`GAIN` times as large, in [0, 1]."""
    return ((pictures - reference).abs() * GAIN).clamp(0, 1)


def save_png(picture: torch.Tensor, path: Path) -> Path:
    """Write ``[channels, height, width]`` in [0, 1] (1 or 3 channels) as PNG, beside and renamed.

    A clip ``[frames, channels, height, width]`` becomes an animated PNG that repeats without end.
    """
    values = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    first, *others = map(_image, values if values.ndim == 4 else [values])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".png.tmp")
    if others:
        first.save(temporary, format="PNG", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    else:
        first.save(temporary, format="PNG")
    os.replace(temporary, path)
    return path
