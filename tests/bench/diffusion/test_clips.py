"""Measures of clips against hand-made values, and the whole benchmark on a tiny video pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import tenuto
from tenuto.bench.diffusion.bench import bench
from tenuto.bench.diffusion.clips import cut_out, frame_psnr, motion_error
from tenuto.bench.diffusion.grids import grid, save_png
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.scores import psnr, ssim
from tenuto.bench.diffusion.single import draw
from tenuto.errors import InputError
from tenuto.records.diffusion import read_runs
from tenuto.report import write_report
from tenuto.zoo.clips import FRAMES

POLICIES = [tenuto.EveryN(), tenuto.FastCache(rtol=10.0)]


def clip(*brightness: float) -> torch.Tensor:
    return torch.tensor(brightness).view(1, -1, 1, 1, 1).expand(1, -1, 1, 12, 12)


def test_frames_count_alike() -> None:
    black, other = clip(0, 0, 0), clip(0.1, 1.0, 0.01)
    assert frame_psnr(other, black) == pytest.approx([20, 0, 40], abs=1e-4)
    assert psnr(other, black).tolist() == pytest.approx([20], abs=1e-4)
    assert ssim(black, black).tolist() == pytest.approx([1])


def test_motion_is_what_changes_from_frame_to_frame() -> None:
    moving = clip(0.0, 0.2, 0.6)
    assert motion_error(moving, moving) == 0
    assert motion_error(moving + 0.1, moving) == pytest.approx(0, abs=1e-6)  # brighter, moved alike
    assert motion_error(clip(0.5, 0.5, 0.5), moving) == pytest.approx(1)
    assert motion_error(clip(0.0, 0.4, 1.2), moving) == pytest.approx(1)
    still = torch.cat([clip(0.3, 0.3, 0.3), moving])
    assert motion_error(torch.cat([moving, clip(0.0, 0.2, 0.2)]), still) == pytest.approx(
        0.4 / (0.2**2 + 0.4**2) ** 0.5
    )
    assert motion_error(moving, clip(0.3, 0.3, 0.3)) == 0


def test_motion_needs_two_frames_of_one_shape() -> None:
    with pytest.raises(InputError, match=r"\(1, 1, 1, 12, 12\) and reference \(1, 1, 1, 12, 12\).* two or more"):
        motion_error(clip(0), clip(0))
    with pytest.raises(InputError, match="of one shape"):
        motion_error(clip(0, 1), clip(0, 1, 2))


def test_a_garment_is_cut_out_wherever_it_stands() -> None:
    frames = torch.zeros(3, 1, 32, 32)
    frames[0, 0, 3:17, 10:17] = 1.0  # 14 high and 7 wide: as high as the picture, half as wide
    frames[1, 0, 18:32, 0:7] = 1.0
    found = cut_out(frames)
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert found[0, 0, 1:-1, 8:20].min() > 0.99
    assert found[0, 0, :, :6].max() < 0.01 > found[0, 0, :, 22:].max()
    assert not found[2].any()


def test_clips_become_one_animated_picture(tmp_path: Path) -> None:
    clips = torch.rand(3, 4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    whole = grid(clips)
    assert whole.shape == (4, 1, 12, 36)
    with Image.open(save_png(whole, tmp_path / "a.png")) as stored:
        assert (stored.format, stored.n_frames, stored.is_animated) == ("PNG", 4, True)
        for number in range(4):
            stored.seek(number)
            shown = torch.frombuffer(bytearray(stored.convert("L").tobytes()), dtype=torch.uint8)
            assert torch.equal(shown.view(12, 36), (whole[number, 0] * 255).round().byte())


@pytest.mark.slow
def test_a_video_model_is_measured_and_shown(tiny_clips: Path, offline: None, tmp_path: Path) -> None:
    job = Job(steps=8, samples=5, guidance=2.0, seed=2)
    runs = {run.policy: run for run in bench(str(tiny_clips), POLICIES, tmp_path / "out", job, device="cpu")}
    assert {run.policy: run for run in read_runs(tmp_path / "out")} == runs
    baseline, run = runs["none"], runs["every_n"]
    assert baseline.telemetry["denoiser_calls"] == run.telemetry["denoiser_calls"] == 8 * 2 * 5
    assert run.reuse_ratio == 0.5
    assert 1.3 < (run.flops_speedup or 0) <= 2.0
    assert (baseline.motion_error, baseline.frame_psnr, baseline.fid) == (None, [], None)
    assert 0 < (run.motion_error or 0) < float("inf")
    assert len(run.frame_psnr) == FRAMES
    assert sum(run.frame_psnr) / FRAMES == pytest.approx(run.psnr)
    assert 0 <= (run.class_accuracy or -1) <= 1
    with Image.open(tmp_path / "out" / run.images["grid"]) as stored:
        assert (stored.size, stored.n_frames) == ((5 * 64, 64), FRAMES)
    page = write_report(tmp_path / "out", None).path.read_text()
    assert "Motion error" in page
    assert page.count("acTL") == 0  # the pictures are base64
    assert page.count("data:image/png;base64,") == 2 * len(runs) - 1


@pytest.mark.slow
def test_one_prompt_can_be_drawn(tiny_clips: Path, tmp_path: Path) -> None:
    job = Job(steps=4, guidance=2.0)
    said = draw(str(tiny_clips), tenuto.EveryN(), [59], job, device="cpu", out=tmp_path / "a.png")
    assert "50.0% of block executions not computed" in said
    with pytest.raises(InputError, match="label 60 is not allowed: .* 0 to 59"):
        draw(str(tiny_clips), None, [60], job, out=tmp_path / "b.png")
