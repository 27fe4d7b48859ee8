"""Pay back what earlier estimates fell short of (``tenuto.diffusion.online`` says how much that is and why)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tenuto.diffusion.policy import Estimator, Step, Streams

__all__ = ["Owing", "Repaying"]


@dataclass(frozen=True, slots=True)
class Owing:
    """The inner state at the last computed step, ``gap`` steps after the one before, and the innovation it showed."""

    inner: Any
    index: int
    gap: int = 1
    innovation: Streams | None = None


@dataclass(frozen=True, slots=True)
class Repaying(Estimator):
    """An estimator whose next ``gap - 1`` estimates carry ``share / 2`` of the innovation each."""

    inner: Estimator
    share: float
    kind: ClassVar[Any] = "reuse"

    def init(self) -> Owing | None:
        return None

    def ready(self, state: Owing | None, step: Step) -> bool:
        return state is not None and self.inner.ready(state.inner, step)

    def estimate(self, state: Owing, step: Step) -> Streams:
        guess = self.inner.estimate(state.inner, step)
        if state.innovation is None or step.index - state.index >= state.gap:
            return guess
        pairs = zip(guess, state.innovation, strict=True)
        return tuple(g if g is None or i is None else torch.add(g, i, alpha=self.share / 2) for g, i in pairs)

    def observe(self, state: Owing | None, step: Step, residual: Streams) -> Owing:
        before = self.inner.init() if state is None else state.inner
        known = self.inner.observe(before, step, residual)
        gap = 1 if state is None else step.index - state.index
        if state is None or gap == 1 or not self.inner.ready(before, step):
            return Owing(known, step.index)
        pairs = zip(residual, self.estimate(state, step), strict=True)
        return Owing(known, step.index, gap, tuple(None if r is None or g is None else r - g for r, g in pairs))

    def expected(self, state: Any) -> torch.Tensor | None:
        return self.inner.expected(state.inner) if isinstance(state, Owing) else None

    def flops(self, state: Owing, step: Step) -> float:
        return self.inner.flops(state.inner, step)

    def flops_observed(self, state: Owing | None, step: Step) -> float:
        mine = self.inner.flops_observed(state.inner if state else None, step)
        owes = state is not None and step.index - state.index > 1 and self.inner.ready(state.inner, step)
        return mine + (self.inner.flops(state.inner, step) if state is not None and owes else 0.0)

    def nbytes(self) -> int:
        return self.inner.nbytes()
