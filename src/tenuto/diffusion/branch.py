"""What is remembered for one guidance branch of one generation, and what that weighs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch

__all__ = ["Branch", "tensor_bytes"]


def tensor_bytes(state: Any) -> int:
    """Bytes that the tensors in a state keep alive: tuples, dictionaries and dataclasses are searched; a storage counts
    in full and once, however many views there are of it."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif is_dataclass(value):
            for item in fields(value):
                visit(getattr(value, item.name))

    visit(state)
    return sum(seen.values())


@dataclass(slots=True)
class Branch:
    """What is remembered for one guidance branch of one generation.

    Attributes:
        generation: its number; signature: shapes and conditions of its calls; index: denoising steps begun, from 0.
        path: numbers of the blocks that a call runs through, None before the first.
        gates, estimators, correctors: states by span; inner: residuals by span and block; held: bytes by span.
        forgotten: no later call will see it.
    """

    generation: int
    signature: Any
    index: int = -1
    timestep: float | None = None
    path: tuple[int, ...] | None = None
    gates: dict[int, Any] = field(default_factory=dict)
    estimators: dict[int, Any] = field(default_factory=dict)
    correctors: dict[int, Any] = field(default_factory=dict)
    inner: dict[int, dict[int, torch.Tensor]] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    forgotten: bool = False

    def drop(self) -> int:
        """Forget all states, so that what comes is computed; the bytes that are free now."""
        for states in (self.gates, self.estimators, self.correctors, self.inner):
            states.clear()
        freed = sum(self.held.values())
        self.held.clear()
        return freed

    def forget(self) -> int:
        """No later call will see it; one that is under way in another thread may still write to it. The bytes that are
        free then."""
        self.forgotten = True
        freed = sum(self.held.values())
        self.held.clear()
        return freed

    def renewed(self) -> Branch:
        """The same generation, with nothing remembered."""
        return Branch(self.generation, self.signature, self.index, self.timestep, self.path)

    def hold(self, span: int, judged: Any) -> int:
        """Count what a span's states hold, with its gate's; the bytes it is more than before."""
        states = (state.get(span) for state in (self.estimators, self.correctors, self.inner))
        bytes_now, before = tensor_bytes((judged, *states)), self.held.get(span, 0)
        self.held[span] = bytes_now
        return bytes_now - before
