"""Compute, or estimate? The calibrated statistical test behind FastCache.

Model. Calibration runs give, for one span of blocks, one range of the schedule and one number of steps since the last
computed step, pairs of an observed relative change ``d`` of the span's input and the relative error ``e`` that the
estimate made. The squared error per unit of squared change is modelled as a scaled chi-square variable,

    e^2 / d^2  ~  scale * chi2(dof) / dof,

with ``scale = E[q]`` and ``dof = 2 E[q]^2 / Var[q]`` of ``q = e^2 / d^2`` (moment matching, Satterthwaite 1946). The
degrees of freedom are *effective*: neighbouring tokens and channels move together, so dof is far below tokens times
channels, and using that product would turn the test into a constant (the published FastCache statistic, see
``tenuto.diffusion.policies.fastcache``).

Test. H0: the estimate's error exceeds the tolerance. Statistic ``T = d^2``; reuse (reject H0) iff

    T <= critical = tolerance^2 / (scale * chi2_{dof, 1 - alpha} / dof).

At the critical change the error exceeds the tolerance with probability ``alpha``: the false-reuse rate. A larger alpha
reuses more. One-sided.

Real ratios have heavier tails than a chi-square. :func:`fit_levels` therefore measures, on ratios the fit has not seen,
at which nominal level the rate really is ``alpha`` (the empirical quantiles of the probability integral transform).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import chi2

from tenuto.errors import InputError

__all__ = ["RATES", "Gate", "Verdict", "fit_gate", "fit_levels", "level_for"]

MIN_DOF = 0.05
RATES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of a test with its evidence: ``reuse`` iff ``statistic <= critical``."""

    reuse: bool
    statistic: float | None = None
    critical: float | None = None
    alpha: float | None = None


@lru_cache(maxsize=4096)
def _quantile_per_dof(dof: float, alpha: float) -> float:
    return float(chi2.ppf(1 - alpha, dof)) / dof


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The test for one span, schedule range and skip length.

    Attributes:
        scale: mean squared error per unit of squared relative change (dimensionless).
        dof: effective degrees of freedom of that ratio, above 0.
        alpha: accepted false-reuse rate, in (0, 1).
        level: nominal level that gives this rate (see :func:`fit_levels`); None takes ``alpha`` itself.
    """

    scale: float
    dof: float
    alpha: float
    level: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha={self.alpha} is not a significance level. It must lie between 0 and 1, e.g. 0.05.")
        if self.level is not None and not 0 < self.level < 1:
            raise InputError(f"level={self.level} is not a nominal level. It must lie between 0 and 1.")
        if not (0 <= self.scale < math.inf and 0 < self.dof < math.inf):
            raise InputError(f"scale={self.scale}, dof={self.dof} is no fitted gate: give scale >= 0, dof > 0, finite.")

    @property
    def _slope(self) -> float:
        return self.scale * _quantile_per_dof(self.dof, self.alpha if self.level is None else self.level)

    def bound(self, change: float) -> float:
        """The ``1 - alpha`` upper bound of the error after a relative change ``change``."""
        return change * math.sqrt(self._slope)

    def judge(self, change: float, tolerance: float) -> Verdict:
        """Test whether an estimate after the relative change ``change`` stays within ``tolerance``."""
        slope = self._slope
        critical = tolerance**2 / slope if slope > 0 else math.inf
        reuse = tolerance > 0 and change**2 <= critical
        return Verdict(reuse=reuse, statistic=change**2, critical=critical, alpha=self.alpha)


def fit_gate(ratios: Sequence[float]) -> tuple[float, float]:
    """``(scale, dof)`` by moment matching from calibration ratios ``e^2 / d^2``.

    Raises:
        InputError: fewer than two ratios.
    """
    if len(ratios) < 2:
        raise InputError(f"{len(ratios)} calibration pairs are too few to fit a gate: give at least 2.")
    mean = math.fsum(ratios) / len(ratios)
    variance = math.fsum((r - mean) ** 2 for r in ratios) / (len(ratios) - 1)
    dof = 2 * mean**2 / variance if variance > 0 else 1e6
    return mean, min(max(dof, MIN_DOF), 1e6)


def fit_levels(
    halves: Sequence[Mapping[Any, Sequence[float]]], judged: Sequence[Mapping[Any, Sequence[float]]] | None = None
) -> list[float]:
    """The nominal level for each of ``RATES``, cross-fitted.

    Args:
        halves: two sets of ratios by cell; gates are fitted on one and their nominal tail probabilities read off the
            other, both ways round.
        judged: the part of each half that is read off, all of it if None.

    Returns:
        ``RATES`` itself where there is nothing to compare.
    """
    tails: list[float] = []
    for seen, unseen in zip(halves, reversed(judged or halves), strict=True):
        for cell in seen.keys() & unseen.keys():
            if len(seen[cell]) > 1:
                scale, dof = fit_gate(seen[cell])
                if scale == 0:  # predicted exactly: it says nothing about tails
                    continue
                tails.extend(chi2.sf(np.asarray(unseen[cell]) * dof / scale, dof).tolist())
    return np.quantile(tails, RATES).tolist() if tails else list(RATES)


def level_for(alpha: float, levels: Sequence[float]) -> float:
    """The nominal level at which the false-reuse rate is ``alpha``, interpolated."""
    return min(max(float(np.interp(alpha, RATES, levels)), 1e-9), 1 - 1e-9)
