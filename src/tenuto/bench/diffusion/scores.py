"""How good pictures are: beside the uncached output (PSNR, SSIM), and beside the data set (FID-fashion, accuracy).

Pictures are float ``[n, channels, height, width]`` in [0, 1]. FID-fashion is the Fréchet distance between Gaussians
fitted to classifier features of generated pictures and of the 10,000 test images: comparable between runs of the same
number of pictures only, never with the FID of papers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import conv2d

from tenuto.errors import InputError, ModelError

__all__ = ["FashionClassifier", "FashionJudge", "frechet", "psnr", "ssim"]

FEATURES = 64
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
MOST_DB = 100.0
JUDGE = Path(__file__).parents[2] / "bundled" / "fashion_judge" / "classifier.safetensors"


class FashionClassifier(nn.Module):
    """A small convolutional classifier of Fashion-MNIST; its 64 penultimate features define FID-fashion."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_stage(1, 32), nn.MaxPool2d(2), *_stage(32, 64), nn.MaxPool2d(2), *_stage(64, 128), *_stage(128, 128)
        )
        self.neck = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128 * 3 * 3, FEATURES))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, 10))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, 1, 28, 28]`` in [0, 1] to ``[n, 64]``, before the last non-linearity (nearer to a Gaussian)."""
        found: torch.Tensor = self.neck(self.trunk(images - 0.5))
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, 1, 28, 28]`` in [0, 1] to logits ``[n, 10]``."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def _stage(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()


def psnr(pictures: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio ``[n]`` in dB, per picture; at most 100, which stands for identical.

    Of clips ``[n, frames, channels, height, width]`` the mean over their frames.
    """
    _same_shape(pictures, reference)
    if pictures.ndim == 5:
        return psnr(pictures.flatten(0, 1), reference.flatten(0, 1)).view(len(pictures), -1).mean(1)
    error = ((pictures.double() - reference.double()) ** 2).flatten(1).mean(1)
    return (-10 * torch.log10(error)).clamp(max=MOST_DB)


def _window(channels: int) -> torch.Tensor:
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return torch.outer(weights, weights).expand(channels, 1, WINDOW, WINDOW)


def ssim(pictures: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity ``[n]`` in [-1, 1], per picture (Wang et al. 2004: Gaussian window 11, sigma 1.5).

    Only windows that lie inside the picture count, as in the reference implementation. Of clips the mean over frames.

    Raises:
        InputError: the shapes differ, or a side is shorter than the window.
    """
    _same_shape(pictures, reference)
    if min(pictures.shape[-2:]) < WINDOW:
        raise InputError(f"SSIM needs pictures of at least {WINDOW}x{WINDOW} pixels, got {tuple(pictures.shape[-2:])}.")
    if pictures.ndim == 5:
        return ssim(pictures.flatten(0, 1), reference.flatten(0, 1)).view(len(pictures), -1).mean(1)
    x, y = pictures.double(), reference.double()
    channels = x.shape[1]
    window = _window(channels).to(x.device)
    stacked = torch.cat([x, y, x * x, y * y, x * y])
    mean_x, mean_y, xx, yy, xy = conv2d(stacked, window, groups=channels).chunk(5)
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + K1**2) * (2 * covariance + K2**2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + K1**2) * (variances + K2**2))
    return similarity.flatten(1).mean(1)


def frechet(features: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> float:
    """Fréchet distance of the Gaussian fitted to ``features [n, d]`` to the Gaussian ``mean [d]``, ``cov [d, d]``.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C2^1/2 C1 C2^1/2)^1/2)`` in float64. The root is taken of a symmetric matrix, so
    fewer pictures than features are fine; the estimate is biased upwards by roughly ``1 / n``, so compare equal n.

    Raises:
        InputError: fewer than two rows.
    """
    if len(features) < 2:
        raise InputError(f"A Fréchet distance needs at least 2 pictures, got {len(features)}.")
    features, mean, cov = features.double(), mean.double(), cov.double()
    own_mean, own_cov = features.mean(0), torch.cov(features.T)
    values, vectors = torch.linalg.eigh(cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ own_cov @ root).clamp(min=0).sqrt().sum()
    distance = ((own_mean - mean) ** 2).sum() + own_cov.trace() + cov.trace() - 2 * cross
    return max(float(distance), 0.0)


class FashionJudge:
    """The bundled classifier with the feature statistics of the Fashion-MNIST test set.

    Raises:
        ModelError: the weights are missing or damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        path = path or JUDGE
        try:
            tensors = load_file(path)
            self.mean, self.cov = tensors.pop("feature_mean"), tensors.pop("feature_cov")
            self.classifier = FashionClassifier()
            self.classifier.load_state_dict(tensors)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"The classifier {path} cannot be read ({reason}). Install Tenuto again.") from error
        self.classifier.eval().requires_grad_(False)

    def _in_chunks(self, call: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([call(chunk.float().cpu()) for chunk in images.split(250)])

    def fid(self, images: torch.Tensor) -> float:
        """FID-fashion of ``images [n, 1, 28, 28]`` in [0, 1], n >= 2; lower is better."""
        return frechet(self._in_chunks(self.classifier.features, images), self.mean, self.cov)

    def class_accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Fraction of ``images [n, 1, 28, 28]`` whose class is the one asked for, ``labels [n]``."""
        guesses = self._in_chunks(self.classifier, images).argmax(1)
        return float((guesses == labels.cpu()).double().mean())


def _same_shape(pictures: torch.Tensor, reference: torch.Tensor) -> None:
    if pictures.shape != reference.shape or pictures.ndim not in (4, 5):
        raise InputError(
            f"Pictures {tuple(pictures.shape)} and reference {tuple(reference.shape)} must both be "
            "[n, channels, height, width] or clips [n, frames, channels, height, width], of one shape."
        )
