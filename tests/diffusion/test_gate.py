"""The calibrated test: what it accepts, how often it is wrong, what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, chi2

from tenuto.diffusion.gate import MIN_DOF, RATES, Gate, Verdict, fit_gate, fit_levels, level_for
from tenuto.errors import InputError

ALPHAS = [0.01, 0.05, 0.2]


def ratios(scale: float, dof: float, size: int, seed: int) -> np.ndarray:
    """Squared error per unit of squared change under the model."""
    return scale * np.random.default_rng(seed).chisquare(dof, size) / dof


def test_the_critical_value_by_hand() -> None:
    gate = Gate(scale=4.0, dof=2.0, alpha=0.05)  # chi2 with 2 degrees of freedom: the 95 % quantile is -2 ln 0.05
    slope = 4.0 * -2 * math.log(0.05) / 2
    verdict = gate.judge(change=0.01, tolerance=0.1)
    assert verdict == Verdict(reuse=True, statistic=0.01**2, critical=pytest.approx(0.1**2 / slope), alpha=0.05)
    assert gate.bound(0.3) == pytest.approx(0.3 * math.sqrt(slope))


def test_reuse_means_at_most_critical() -> None:
    gate = Gate(scale=4.0, dof=2.0, alpha=0.05)
    critical = gate.judge(0.0, 0.1).critical
    assert critical is not None
    assert gate.judge(math.sqrt(critical) * (1 - 1e-9), 0.1).reuse
    assert not gate.judge(math.sqrt(critical) * (1 + 1e-9), 0.1).reuse
    assert gate.bound(math.sqrt(critical)) == pytest.approx(0.1)


@pytest.mark.parametrize(("scale", "dof"), [(0.5, 3.0), (2.0, 40.0), (1e-3, 0.7)])
def test_fitting_recovers_scale_and_degrees_of_freedom(scale: float, dof: float) -> None:
    found = fit_gate(ratios(scale, dof, 100_000, seed=1).tolist())
    assert found[0] == pytest.approx(scale, rel=0.02)
    assert found[1] == pytest.approx(dof, rel=0.05)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dof", [3.0, 40.0])
def test_the_false_reuse_rate_is_alpha(alpha: float, dof: float) -> None:
    scale, effective = fit_gate(ratios(0.5, dof, 200_000, seed=2).tolist())
    critical = Gate(scale=scale, dof=effective, alpha=alpha).judge(0.0, tolerance=0.1).critical
    assert critical is not None
    held_out = ratios(0.5, dof, 4000, seed=3)  # at the critical change: false reuse is an error above the tolerance
    wrong = int((held_out * critical > 0.1**2).sum())
    low, high = binom.interval(0.95, len(held_out), alpha)
    assert low <= wrong <= high


def test_below_the_critical_change_it_is_wrong_less_often() -> None:
    gate = Gate(scale=0.5, dof=5.0, alpha=0.05)
    critical = gate.judge(0.0, tolerance=0.1).critical
    assert critical is not None
    assert (ratios(0.5, 5.0, 4000, seed=4) * 0.5 * critical > 0.1**2).mean() < 0.01


def test_a_larger_alpha_and_a_larger_tolerance_reuse_more() -> None:
    changes = np.linspace(0, 1, 200).tolist()

    def reused(alpha: float, tolerance: float) -> int:
        gate = Gate(scale=0.5, dof=3.0, alpha=alpha)
        return sum(gate.judge(change, tolerance).reuse for change in changes)

    by_alpha = [reused(alpha, 0.3) for alpha in (0.001, 0.01, 0.05, 0.2, 0.5)]
    by_tolerance = [reused(0.05, tolerance) for tolerance in (0.0, 0.1, 0.2, 0.4)]
    for counts in (by_alpha, by_tolerance):
        assert counts == sorted(set(counts)), counts
    assert by_tolerance[0] == 0


def test_fewer_degrees_of_freedom_are_more_careful() -> None:
    bounds = [Gate(scale=1.0, dof=dof, alpha=0.05).bound(0.1) for dof in (1.0, 4.0, 100.0, 1e6)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(0.1, rel=0.01), "certain about the error: the bound is its mean"
    assert bounds[0] == pytest.approx(0.1 * math.sqrt(chi2.ppf(0.95, 1)))


def test_extremes() -> None:
    assert Gate(scale=0.0, dof=1.0, alpha=0.05).judge(10.0, 0.1).reuse, "an estimate that is never wrong"
    assert not Gate(scale=0.0, dof=1.0, alpha=0.05).judge(0.0, 0.0).reuse, "no tolerance, no reuse"
    assert not Gate(scale=1.0, dof=1.0, alpha=0.05).judge(math.nan, 0.1).reuse
    assert fit_gate([0.5, 0.5]) == (0.5, 1e6)
    assert fit_gate([0.0] * 999 + [1.0])[1] == MIN_DOF


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_alpha_is_a_rate(alpha: float) -> None:
    with pytest.raises(InputError, match=rf"^alpha={alpha} is not a significance level\. .*e\.g\. 0\.05\.$"):
        Gate(scale=1.0, dof=1.0, alpha=alpha)


@pytest.mark.parametrize("given", [[], [1.0]])
def test_too_few_pairs(given: list[float]) -> None:
    with pytest.raises(InputError, match=f"^{len(given)} calibration pairs are too few"):
        fit_gate(given)


def test_levels_mend_a_tail_that_is_no_chi_square() -> None:
    draw = np.random.default_rng(0)
    cells = range(40)

    def sample(size: int) -> np.ndarray:  # nine easy pictures, and one that is ten times harder
        return np.where(draw.random(size) < 0.9, draw.uniform(0.5, 1.5, size), draw.uniform(5, 15, size))

    halves = [{cell: sample(200).tolist() for cell in cells} for _ in range(2)]
    levels = fit_levels(halves)
    assert levels == sorted(levels)
    for alpha in (0.05, 0.2):
        plain, mended = [], []
        for cell in cells:
            scale, dof = fit_gate([*halves[0][cell], *halves[1][cell]])
            fresh = sample(500)
            gate = Gate(scale=scale, dof=dof, alpha=alpha)
            plain.append((fresh > gate.bound(1.0) ** 2).mean())
            gate = Gate(scale=scale, dof=dof, alpha=alpha, level=level_for(alpha, levels))
            mended.append((fresh > gate.bound(1.0) ** 2).mean())
        assert abs(np.mean(mended) - alpha) < 0.2 * alpha
        assert abs(np.mean(mended) - alpha) < abs(np.mean(plain) - alpha)


def test_levels_of_nothing_are_the_rates_themselves() -> None:
    assert fit_levels([{}, {}]) == list(RATES)
    assert level_for(0.05, RATES) == pytest.approx(0.05)
