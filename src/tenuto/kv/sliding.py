"""Layers that slide over a window: transformers' own, beside ours in one cache. What they hold is counted too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tenuto.errors import AttachError
from tenuto.kv.engine import EngineLayer
from tenuto.kv.models import Layout

__all__ = ["check_crop", "let_go", "nbytes", "sliding", "tensors"]


def sliding(layers: Sequence[Any]) -> Iterator[Any]:
    """Those of a cache's layers that slide."""
    return (layer for layer in layers if not isinstance(layer, EngineLayer))


def tensors(layers: Sequence[Any]) -> list[torch.Tensor]:
    """Keys and values they hold."""
    return [tensor for layer in sliding(layers) if layer.is_initialized for tensor in (layer.keys, layer.values)]


def let_go(layers: Sequence[Any]) -> None:
    """After a call they keep views of all that came: have them keep their window alone."""
    for layer in sliding(layers):
        for name in ("keys", "values") if layer.is_initialized else ():
            tensor = getattr(layer, name)
            tokens = tensor.shape[-2]
            if tensor.untyped_storage().nbytes() * tokens > tensor.nbytes * (tokens + 1):
                setattr(layer, name, tensor.clone())


def check_crop(layers: Sequence[Any]) -> None:
    """Refuse to take tokens back where a window has let go of those before.

    Raises:
        AttachError: it has.
    """
    for layer in sliding(layers):
        if layer.is_initialized and layer.get_seq_length() >= layer.sliding_window and not layer.record_past:
            raise AttachError(
                "Layers that slide have let go of what stood before the tokens to take back. Call "
                "cache.activate_past_recording() before these tokens, or start again."
            )


def nbytes(layers: Sequence[Any], layout: Layout, rows: int, tokens: int) -> int:
    """Bytes they hold, or will when every row has seen so many tokens."""
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors(layers))
    return max(rows * sum(spec.window_bytes(tokens, layout.itemsize) for spec in layout.layers), held)
