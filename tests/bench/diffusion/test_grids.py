"""Grids have the right pictures in the right places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tenuto.bench.diffusion.grids import difference, grid, save_png


def test_samples_go_row_by_row_and_are_doubled() -> None:
    pictures = (torch.arange(13) / 12).view(13, 1, 1, 1).expand(13, 1, 4, 4)
    whole = grid(pictures)
    assert whole.shape == (1, 2 * 8, 10 * 8)
    assert torch.allclose(whole[0, 4, 4::8], torch.arange(10) / 12)
    assert torch.allclose(whole[0, 12, 4::8], torch.tensor([10, 11, 12] + [0] * 7) / 12)


def test_large_pictures_keep_their_size_and_many_are_cut() -> None:
    assert grid(torch.zeros(3, 3, 64, 64)).shape == (3, 64, 3 * 64)
    assert grid(torch.zeros(500, 1, 4, 4)).shape == (1, 6 * 8, 10 * 8)


def test_difference_is_five_times_and_clipped() -> None:
    a, b = torch.tensor([0.5, 0.5, 0.9]), torch.tensor([0.6, 0.5, 0.1])
    assert torch.allclose(difference(a, b), torch.tensor([0.5, 0.0, 1.0]))


def test_png_holds_the_values(tmp_path: Path) -> None:
    colour = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    path = save_png(colour, tmp_path / "new" / "c.png")
    with Image.open(path) as stored:
        assert np.array_equal(np.asarray(stored), (colour * 255).round().byte().permute(1, 2, 0).numpy())
    with Image.open(save_png(colour[:1], tmp_path / "g.png")) as grey:
        assert (grey.mode, grey.format) == ("L", "PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.png", "new"]
