"""What a denoiser's calls have in common within a generation: where it changes, what is remembered no longer fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["attentions", "conditions", "shapes"]


def shapes(given: Any) -> Any:
    """Shapes, dtypes and devices of all tensors in a call's arguments, also in lists and dictionaries (ControlNet
    residuals), with their names."""
    if isinstance(given, torch.Tensor):
        return given.shape, given.dtype, given.device
    if isinstance(given, dict):
        return tuple((key, shape) for key, value in given.items() if (shape := shapes(value)))
    if isinstance(given, (tuple, list)):
        return tuple(shape for value in given if (shape := shapes(value)))
    return ()


def attentions(root: nn.Module) -> tuple[nn.Module, ...]:
    """The attention modules, whose processors (how attention is computed) can be exchanged."""
    return tuple(module for module in root.modules() if "processor" in vars(module))


def conditions(root: nn.Module, attending: tuple[nn.Module, ...]) -> Any:
    """Training mode, weights' dtype and device, autocast, and how attention is computed."""
    weight = next(root.parameters(), None)
    place = () if weight is None else (weight.dtype, weight.device)
    kind = place[1].type if place else "cpu"
    cast = torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None
    backends = tuple(
        (
            id(each.processor),
            getattr(each.processor, "_attention_backend", None),
            getattr(each, "fused_projections", None),
        )
        for each in attending
    )
    return root.training, place, cast, backends
