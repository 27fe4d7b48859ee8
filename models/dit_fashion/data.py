"""Fashion-MNIST from the Debian package ``dataset-fashion-mnist`` (MIT), as tensors.

Images are padded from 28x28 to 32x32 and scaled to [-1, 1]: the input of the autoencoder.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PAD = 2


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes (the MNIST container format)."""
    if not path.exists():
        raise SystemExit(
            f"{path} not found. Install it with: apt-get install dataset-fashion-mnist, or pass --data FOLDER"
        )
    with gzip.open(path, "rb") as file:
        _, dims = struct.unpack(">HxB", file.read(4))
        shape = struct.unpack(f">{dims}I", file.read(4 * dims))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def load(split: str, folder: Path = DEFAULT_FOLDER) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images ``[n, 1, 28, 28]`` uint8 and labels ``[n]`` int64 of ``"train"`` or ``"t10k"``."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64))


def to_model(images: torch.Tensor) -> torch.Tensor:
    """uint8 ``[n, 1, 28, 28]`` -> float ``[n, 1, 32, 32]`` in [-1, 1]."""
    return torch.nn.functional.pad(images.float() / 127.5 - 1, [PAD] * 4, value=-1.0)


def from_model(images: torch.Tensor) -> torch.Tensor:
    """float ``[n, 1, 32, 32]`` in [-1, 1] -> float ``[n, 1, 28, 28]`` in [0, 1]."""
    return (images[..., PAD:-PAD, PAD:-PAD] / 2 + 0.5).clamp(0, 1)
