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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy.stats import chi2

from tenuto.errors import InputError

__all__ = ["Gate", "Verdict", "fit_gate"]

MIN_DOF = 0.05


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
    """

    scale: float
    dof: float
    alpha: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha={self.alpha} is not a significance level. It must lie between 0 and 1, e.g. 0.05.")

    def bound(self, change: float) -> float:
        """The ``1 - alpha`` upper bound of the error after a relative change ``change``."""
        return change * math.sqrt(self.scale * _quantile_per_dof(self.dof, self.alpha))

    def judge(self, change: float, tolerance: float) -> Verdict:
        """Test whether an estimate after the relative change ``change`` stays within ``tolerance``."""
        slope = self.scale * _quantile_per_dof(self.dof, self.alpha)
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
