"""One forward call of a decoder: whose cache it steps, and what its layers were seen to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Call", "call", "current", "stepping"]


@dataclass(slots=True, eq=False)
class Call:
    """What is known of a call that is under way.

    Attributes:
        masks: those of four dimensions that were looked at, and hide what the cache knows to be hidden.
        causal: whether the model asked for a causal mask.
        attended: how often each layer has attended, by number.
    """

    masks: list[torch.Tensor] = field(default_factory=list)
    causal: bool = False
    attended: dict[int, int] = field(default_factory=dict)


current: ContextVar[Any] = ContextVar("tenuto_kv_cache", default=None)
"""The cache of the step that is under way: a KVCache, a ShardedCache, or None."""

call: ContextVar[Call | None] = ContextVar("tenuto_kv_call", default=None)
"""What is known of that step."""


@contextmanager
def stepping(cache: Any, masks: list[torch.Tensor]) -> Iterator[Call]:
    """The decoder is called on ``cache``, with ``masks`` that were looked at already."""
    here = Call(masks)
    tokens = current.set(cache), call.set(here)
    try:
        yield here
    finally:
        current.reset(tokens[0])
        call.reset(tokens[1])
