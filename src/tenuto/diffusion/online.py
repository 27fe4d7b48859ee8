"""Estimates and gates that need no fit: both learn from the truth that every computed step shows.

Estimator. From the last computed step b on, a span's residual is forecast along the slope between the last two computed
steps. How much of the slope is right, a coefficient per branch, sample and channel, is learned at computed steps by
recursive least squares with forgetting. What an estimator got wrong before b is not lost either: with ``gap`` steps
from the computed step before to b, the estimates between fell short of the line between the two truths by
``(gap - 1) / 2`` times the innovation (the truth at b minus what would have been estimated there), all together. That
debt is paid back, ``REPAID`` of it, over the next ``gap - 1`` estimates, so a sampler that adds outputs up hardly
drifts. Each estimate is a little further from its own truth for it; the error model counts that.

Gate. At every computed step the error that an estimate would have had is known. ``log error = level + exponent * log
gap`` is followed through these errors, with the spread of its own misses, and an estimate is charged the one-sided
``1 - alpha`` bound that follows: step-size control as in an adaptive solver of differential equations, where a rejected
estimate costs nothing, because its step is computed. A level that is rising is expected to go on rising.

Innovation: AdaCorrection, https://arxiv.org/abs/2602.13357. Forecast: TaylorSeer, https://arxiv.org/abs/2503.06923.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from scipy.stats import norm

from tenuto.budget import ErrorBudget
from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policy import Estimator, Step, StepGate, Streams
from tenuto.diffusion.trajectory import change_of

__all__ = ["ErrorModel", "OnlineEstimator", "OnlineGate"]

SLOPE, PRIOR, FORGET = 0.8, 0.1, 0.5  # of the slope's coefficient: what is assumed, at which weight, what stays
SHRINK = 0.3  # of a channel's coefficient towards its sample's
REPAID = 0.85
LEAST_ERROR = 1e-6  # rounding in single precision
EXPONENT, EXPONENTS, EXPONENT_WEIGHT = 1.0, (0.5, 2.5), 0.5
LEVEL, SPREAD, SPREAD_KEPT, MOST_MISS = 0.8, 0.3, 0.8, 2.0
TREND = 0.5
GROWTH = 2


class _Bound(NamedTuple):
    """What the gate reads of an error model, for one sample."""

    level: float
    exponent: float
    spread: float
    trend: float

    def at(self, gap: int, quantile: float) -> float:
        return math.exp(self.level + self.exponent * math.log(gap) + quantile * self.spread + self.trend)


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """``log error = level + exponent * log gap``, per sample; every tensor is ``[batch]``.

    ``spread`` is the root mean square of what it missed by, ``trend`` by how much the level is expected to rise until
    the next computed step. ``last`` is the log of the last gap and error seen; ``weight`` and ``product`` are the sums
    that the exponent follows from.
    """

    level: torch.Tensor
    exponent: torch.Tensor
    spread: torch.Tensor
    trend: torch.Tensor
    weight: torch.Tensor
    product: torch.Tensor
    last: tuple[float, torch.Tensor]

    @classmethod
    def first(cls, error: torch.Tensor, gap: int) -> ErrorModel:
        """The model after one error ``[batch]`` that was seen ``gap`` steps after a computed one."""
        seen, none = error.clamp_min(LEAST_ERROR).log(), torch.zeros_like(error)
        exponent, spread = torch.full_like(seen, EXPONENT), torch.full_like(seen, SPREAD)
        return cls(seen - EXPONENT * math.log(gap), exponent, spread, none, none, none, (math.log(gap), seen))

    def after(self, error: torch.Tensor, gap: int) -> ErrorModel:
        """The model after one more."""
        seen, distance = error.clamp_min(LEAST_ERROR).log(), math.log(gap)
        missed = (seen - self.level - self.exponent * distance).clamp(-MOST_MISS, MOST_MISS)
        spread = (SPREAD_KEPT * self.spread.square() + (1 - SPREAD_KEPT) * missed.square()).sqrt()
        further = distance - self.last[0]
        weight = SPREAD_KEPT * self.weight + further**2
        found = ((seen - self.last[1]) / further).clamp(*EXPONENTS) if further else self.exponent
        product = SPREAD_KEPT * self.product + further**2 * found
        exponent = ((EXPONENT_WEIGHT * EXPONENT + product) / (EXPONENT_WEIGHT + weight)).clamp(*EXPONENTS)
        level = self.level + (self.exponent - exponent) * distance + LEVEL * missed
        trend = (TREND * missed).clamp_min(0)
        return ErrorModel(level, exponent, spread, trend, weight, product, (distance, seen))

    def told(self) -> torch.Tensor:
        """``[batch, 4]``: level, exponent, spread, trend."""
        return torch.stack([self.level, self.exponent, self.spread, self.trend], 1)


@dataclass(frozen=True, slots=True)
class _Stream:
    """One stream at the last computed step: its ``residual``, the ``slope`` per step that led to it, the ``innovation``
    it showed, and the sums ``[batch, channels]`` of the slope's coefficients."""

    residual: torch.Tensor
    slope: torch.Tensor | None = None
    innovation: torch.Tensor | None = None
    square: torch.Tensor | None = None
    product: torch.Tensor | None = None

    def forecast(self, gap: int, owing: bool) -> torch.Tensor:
        """The residual ``gap`` steps on."""
        guess = self.residual
        if self.slope is not None:
            guess = torch.addcmul(guess, self.slope, self._coefficient().to(guess.dtype), value=gap)
        return torch.add(guess, self.innovation, alpha=REPAID / 2) if owing and self.innovation is not None else guess

    def _coefficient(self) -> torch.Tensor:
        """``[batch, 1, channels]``."""
        square, product = self.square, self.product
        if square is None or product is None:
            return torch.full((), SLOPE, device=self.residual.device)
        whole, parts = square.sum(1, keepdim=True), product.sum(1, keepdim=True)
        own = (parts + PRIOR * SLOPE * whole) / ((1 + PRIOR) * whole).clamp_min(1e-30)
        found: torch.Tensor = (product + SHRINK * own * square) / ((1 + SHRINK) * square).clamp_min(1e-30)
        return found.clamp(0, 2)[:, None]

    def after(self, residual: torch.Tensor, gap: int, owing: bool, step: Step) -> _Stream:
        """The stream after a computed step, ``gap`` steps after the one before."""
        moved = residual - self.residual
        if self.slope is None:
            return _Stream(residual, moved / gap)
        along = self.slope * gap
        sums = torch.stack([(along * along).sum(1, dtype=torch.float32), (along * moved).sum(1, dtype=torch.float32)])
        size = step.reduce(torch.cat([sums, moved.square().sum(1, dtype=torch.float32)[None]]))
        square, product = size[:2] / size[2].sum(1, keepdim=True).clamp_min(1e-30)  # every step counts alike
        if self.square is not None and self.product is not None:
            square, product = square + FORGET * self.square, product + FORGET * self.product
        innovation = residual - self.forecast(gap, owing)
        return _Stream(residual, moved / gap, innovation, square, product)


@dataclass(frozen=True, slots=True)
class _KnownSteps:
    """What a span's computed steps have shown: the last one's index, the steps from the one before to it, its streams,
    and the errors so far."""

    index: int
    gap: int
    streams: tuple[_Stream | None, ...]
    errors: ErrorModel | None = None

    def owes(self, gap: int) -> bool:
        """Whether the estimate ``gap`` steps on pays a part of the debt."""
        return gap < self.gap


@dataclass(frozen=True, slots=True)
class OnlineEstimator(Estimator):
    """Forecast along a slope whose weight is learned, and pay back what earlier estimates fell short of."""

    kind: ClassVar[Any] = "forecast"

    def init(self) -> _KnownSteps | None:
        return None

    def ready(self, state: _KnownSteps | None, step: Step) -> bool:
        return state is not None and state.errors is not None

    def estimate(self, state: _KnownSteps, step: Step) -> Streams:
        gap = step.index - state.index
        return tuple(None if s is None else s.forecast(gap, state.owes(gap)) for s in state.streams)

    def observe(self, state: _KnownSteps | None, step: Step, residual: Streams) -> _KnownSteps:
        if state is None or any((s is None) != (r is None) for s, r in zip(state.streams, residual, strict=True)):
            return _KnownSteps(step.index, 1, tuple(None if r is None else _Stream(r) for r in residual))
        gap = step.index - state.index
        pairs = zip(state.streams, residual, strict=True)
        streams = tuple(None if s is None or r is None else s.after(r, gap, state.owes(gap), step) for s, r in pairs)
        known = _KnownSteps(step.index, gap, streams)
        image, true, guess = step.hidden[0], residual[0], self.estimate(state, step)[0]
        if image is None or true is None or guess is None:
            return known
        error = change_of(image + guess, image + true, step.reduce)
        return replace(known, errors=state.errors.after(error, gap) if state.errors else ErrorModel.first(error, gap))

    def expected(self, state: Any) -> torch.Tensor | None:
        return state.errors.told() if isinstance(state, _KnownSteps) and state.errors is not None else None


@dataclass(frozen=True, slots=True)
class _OnlineState:
    """The last computed step, the steps from the one before to it, what has been spent, and what an estimate at this
    step would cost."""

    index: int
    gap: int
    budget: ErrorBudget
    charge: float = 0.0


@dataclass(frozen=True, slots=True)
class OnlineGate(StepGate):
    """Reuse while the bounds that the estimator's own error model gives fit into what is left of the error budget.

    The worst sample decides. Nothing is known before two steps were computed: then it computes. From one computed step
    to the next are at most ``GROWTH`` times as many steps as before: an error seen near tells little about far.
    """

    alpha: float
    budget: ErrorBudget
    longest: int
    shared: ClassVar[bool] = False

    def init(self) -> _OnlineState | None:
        return None

    def judge(self, state: _OnlineState | None, step: Step) -> tuple[Verdict, _OnlineState | None]:
        known = None
        if state is not None and step.index - state.index <= min(self.longest, GROWTH * state.gap - 1):
            known = step.expected()
        if state is None or known is None:
            return Verdict(reuse=False), state
        quantile = float(norm.isf(self.alpha))
        bound = max(_Bound(*sample).at(step.index - state.index, quantile) for sample in known)
        left = min(state.budget.left, state.budget.most)
        reuse = left > 0 and bound <= left
        return Verdict(reuse=reuse, statistic=bound, critical=left, alpha=self.alpha), replace(state, charge=bound)

    def settled(self, state: _OnlineState | None, step: Step, verdict: Verdict, computed: bool) -> _OnlineState | None:
        if not computed:
            return replace(state, budget=state.budget.spend(state.charge)) if state else None
        if state is None:
            return _OnlineState(step.index, 1, self.budget)
        return _OnlineState(step.index, step.index - state.index, state.budget.renew())
