"""Chunks of a tiny model, and what a cache holds after they are joined."""

from __future__ import annotations

from typing import Any

import torch

from tenuto.budget import MemoryBudget
from tenuto.kv.attach import attach
from tenuto.kv.policies.knorm import Knorm
from tenuto.reuse.chunks import ChunkStore
from tenuto.reuse.policy import Assembler, Layers
from tenuto.testing.kv import tokens


def chunks() -> list[torch.Tensor]:
    return [tokens(length, seed) for seed, length in enumerate((11, 20, 15, 9))]


def entries(model: Any, assembler: Assembler, store: ChunkStore | None = None) -> Layers:
    """Keys and values per layer after joining ``chunks()``."""
    with attach(model, Knorm(), budget=MemoryBudget.keep(1.0)) as run:
        cache = run.join(chunks(), assembler, store=store)
    length = cache.sequences.columns
    stores: Any = [layer.held.store for layer in cache.engine if layer.held]
    return [(s.dense_of(s.keys, length)[0], s.dense_of(s.values, length)[0]) for s in stores]


def gap(left: Layers, right: Layers) -> float:
    pairs = [(a, b) for mine, others in zip(left, right, strict=True) for a, b in zip(mine, others, strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs)
