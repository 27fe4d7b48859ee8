"""Weights from a seed, also where several threads build models at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's own generator starts at ``seed`` inside the block, and is as it was after it.

    It is one for the whole process: of two threads that build a model from a seed, one draws some of the other's
    numbers. So they wait for each other here.
    """
    with _ONE_AT_A_TIME, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
