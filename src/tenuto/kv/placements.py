"""The former place of :mod:`tenuto.shards`, for one version: what is asked for here comes from there, with a note."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    warnings.warn("tenuto.kv.placements is tenuto.shards now; this name goes with the next version.", stacklevel=2)
    return getattr(importlib.import_module("tenuto.shards"), name)
