"""Attention that is built into a model and trained with it, and owns its cache: levels of memory, or a pattern."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# sync: begin (written by `make sync`)
if TYPE_CHECKING:
    from tenuto.attention.attach import added, attention_of, load, retrofit, watch
    from tenuto.attention.cache import held
    from tenuto.attention.policies.fastmka import FastMKA
    from tenuto.attention.policies.mka import MKA, keep_far
    from tenuto.attention.policies.pi_attention import PiAttention
    from tenuto.attention.policies.short_conv import ShortConv
    from tenuto.attention.policies.window import Window

_HOMES = {
    "FastMKA": "tenuto.attention.policies.fastmka",
    "MKA": "tenuto.attention.policies.mka",
    "PiAttention": "tenuto.attention.policies.pi_attention",
    "ShortConv": "tenuto.attention.policies.short_conv",
    "Window": "tenuto.attention.policies.window",
    "added": "tenuto.attention.attach",
    "attention_of": "tenuto.attention.attach",
    "held": "tenuto.attention.cache",
    "keep_far": "tenuto.attention.policies.mka",
    "load": "tenuto.attention.attach",
    "retrofit": "tenuto.attention.attach",
    "watch": "tenuto.attention.attach",
}
__all__ = [
    "FastMKA",
    "MKA",
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
# sync: end


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the contract needs no model library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tenuto.attention' has no public name {name!r}.")
    return getattr(importlib.import_module(_HOMES[name]), name)
