"""Attention that is built into a model and trained with it, and owns its cache: levels of memory, or a pattern."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenuto.attention.attach import added, attention_of, load, retrofit, watch
    from tenuto.attention.cache import held
    from tenuto.attention.policies.fastmka import FastMKA
    from tenuto.attention.policies.mka import MKA, keep_far
    from tenuto.attention.policies.pi_attention import PiAttention
    from tenuto.attention.policies.short_conv import ShortConv
    from tenuto.attention.policies.window import Window

_HOMES = {
    "FastMKA": "policies.fastmka",
    "MKA": "policies.mka",
    "PiAttention": "policies.pi_attention",
    "ShortConv": "policies.short_conv",
    "Window": "policies.window",
    "added": "attach",
    "attention_of": "attach",
    "held": "cache",
    "keep_far": "policies.mka",
    "load": "attach",
    "retrofit": "attach",
    "watch": "attach",
}

__all__ = [
    "MKA",
    "FastMKA",
    "PiAttention",
    "ShortConv",
    "Window",
    "added",
    "attention_of",
    "held",
    "keep_far",
    "load",
    "retrofit",
    "watch",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the contract needs no model library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tenuto.attention' has no public name {name!r}.")
    return getattr(importlib.import_module(f"tenuto.attention.{_HOMES[name]}"), name)
