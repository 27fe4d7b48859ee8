"""Quality numbers against hand-made and independent values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.linalg import sqrtm

from tenuto.bench.diffusion.scores import FashionClassifier, FashionJudge, frechet, psnr, ssim
from tenuto.errors import InputError, ModelError
from tenuto.records.intervals import mean_interval


def pattern() -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(28).double() / 27, torch.arange(28).double() / 27, indexing="ij")
    first = 0.5 + 0.5 * torch.sin(7 * x + 3 * y)
    return first[None, None], (first * 0.8 + 0.1 * torch.cos(20 * x * y)).clamp(0, 1)[None, None]


def test_psnr_per_picture() -> None:
    black = torch.zeros(3, 1, 4, 4)
    other = torch.stack([black[0], black[1] + 0.1, black[2] + 1.0])
    assert psnr(other, black).tolist() == pytest.approx([100.0, 20.0, 0.0], abs=1e-5)


def test_ssim_equals_scikit_image() -> None:
    # skimage.metrics.structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    # data_range=1) of scikit-image 0.26 on the same two patterns
    a, b = pattern()
    assert float(ssim(b, a)) == pytest.approx(0.7954119239263858, abs=1e-6)
    assert ssim(torch.cat([a, b]), torch.cat([a, a]))[0] == pytest.approx(1.0)
    assert float(ssim(b.expand(1, 3, 28, 28), a.expand(1, 3, 28, 28))) == pytest.approx(0.7954119239263858, abs=1e-6)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_shapes_must_agree(measure: type) -> None:
    with pytest.raises(InputError, match=r"\(2, 1, 12, 12\) and reference \(1, 1, 12, 12\)"):
        measure(torch.zeros(2, 1, 12, 12), torch.zeros(1, 1, 12, 12))


def test_ssim_needs_a_window() -> None:
    with pytest.raises(InputError, match="11x11"):
        ssim(torch.zeros(1, 1, 8, 28), torch.zeros(1, 1, 8, 28))


def test_frechet_equals_the_textbook_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 2
    mixing = torch.randn(6, 6, generator=generator).double()
    mean, cov = torch.arange(6.0).double(), mixing @ mixing.T
    own = torch.cov(features.double().T)
    cross = torch.from_numpy(sqrtm((own @ cov).numpy()).real)
    expected = ((features.double().mean(0) - mean) ** 2).sum() + (own + cov - 2 * cross).trace()
    assert frechet(features, mean, cov) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_of_a_gaussian_with_itself_is_small_and_a_shift_counts_squared() -> None:
    features = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    near = frechet(features, features.mean(0), torch.cov(features.T))
    assert near == pytest.approx(0.0, abs=1e-9)
    assert frechet(features + 3, features.mean(0), torch.cov(features.T)) == pytest.approx(4 * 9, rel=1e-5)
    with pytest.raises(InputError, match="at least 2"):
        frechet(features[:1], features.mean(0), torch.cov(features.T))


def test_fewer_pictures_than_features_still_have_a_distance() -> None:
    features = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert 0 < frechet(features, torch.zeros(64), torch.eye(64)) < math.inf


def test_interval_of_the_mean() -> None:
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - 1.96324, 3 + 1.96324), abs=1e-4)
    assert mean_interval([1.0]) is None


def test_classifier_is_small_and_has_64_features() -> None:
    model = FashionClassifier().eval()
    images = torch.rand(3, 1, 28, 28)
    assert model.features(images).shape == (3, 64)
    assert model(images).shape == (3, 10)
    assert sum(p.numel() for p in model.parameters()) < 400_000


def test_judge_counts_hits(judge_file: Path) -> None:
    judge = FashionJudge(judge_file)
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    guesses = judge.classifier(images).argmax(1)
    assert judge.class_accuracy(images, guesses) == 1.0
    assert judge.class_accuracy(images, (guesses + (torch.arange(20) < 5)) % 10) == 0.75
    assert judge.fid(images) == pytest.approx(frechet(judge.classifier.features(images), judge.mean, judge.cov))


def test_judge_that_is_damaged_or_missing(judge_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "classifier.safetensors"
    with pytest.raises(ModelError, match=r"classifier.safetensors cannot be read"):
        FashionJudge(broken)
    broken.write_bytes(judge_file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read"):
        FashionJudge(broken)
