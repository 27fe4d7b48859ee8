"""What is learned on the way: error models, forecasts and the gate by hand, and what is read from the device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from stepping import make_step

import tenuto
from tenuto.budget import ErrorBudget
from tenuto.diffusion.online import PRIOR, REPAID, SHRINK, SLOPE, ErrorModel, OnlineEstimator, OnlineGate
from tenuto.diffusion.policy import Step
from tenuto.testing import TinyDiT, denoise


def bound(model: ErrorModel, gap: int) -> list[float]:
    return [math.exp(level + p * math.log(gap)) for level, p, *_ in model.told().tolist()]


@pytest.mark.parametrize("power", [0.7, 1.0, 2.0])
def test_the_law_of_the_errors_is_found(power: float) -> None:
    scale = torch.tensor([0.01, 0.2])
    model = ErrorModel.first(scale, 1)
    for gap in (2, 4, 1, 3, 5, 2, 6, 3, 4, 2, 5, 1):
        model = model.after(scale * gap**power, gap)
    for gap in (2, 4):  # the prior of the exponent, 1, keeps a part of its weight
        assert bound(model, gap) == pytest.approx([float(s) * gap**power for s in scale], rel=0.25)
    assert float(model.spread.max()) < 0.3


def test_an_error_of_nothing_is_no_infinity_and_is_soon_forgotten() -> None:
    model = ErrorModel.first(torch.zeros(1), 1)
    for _ in range(30):
        model = model.after(torch.full((1,), 0.1), 2)
    assert bound(model, 2) == pytest.approx([0.1], rel=0.01)
    assert float(model.trend) == pytest.approx(0, abs=0.01)


def line(estimator: OnlineEstimator, at: list[int], bend: float = 0.0) -> Any:
    """The state after the computed steps ``at`` of a residual that goes along a line, with a bend."""
    generator = torch.Generator().manual_seed(3)
    start, along = torch.randn(2, 2, 6, 4, generator=generator)
    state = estimator.init()
    for index in at:
        residual = start + (index + bend * index**2) * along
        state = estimator.observe(state, make_step(index, (start, None)), (residual, None))
    return state, start, along


def test_a_line_is_forecast_but_for_the_prior() -> None:
    estimator = OnlineEstimator()
    state, start, along = line(estimator, [0, 1, 3, 5])
    own = (1 + PRIOR * SLOPE) / (1 + PRIOR)
    weight = (1 + SHRINK * own) / (1 + SHRINK)
    owed = REPAID / 2 * 2 * (1 - weight_before()) * along
    guess, none = estimator.estimate(state, make_step(6, (start, None)))
    assert guess is not None and none is None
    torch.testing.assert_close(guess, start + 5 * along + weight * along + owed, rtol=1e-4, atol=1e-4)


def weight_before() -> float:
    """The coefficient at step 3, which step 5 showed to be too small: it had seen the line once."""
    own = (1 + PRIOR * SLOPE) / (1 + PRIOR)
    return (1 + SHRINK * own) / (1 + SHRINK)


def test_the_debt_is_paid_over_as_many_steps_as_it_was_made_in() -> None:
    estimator = OnlineEstimator()
    state, start, _ = line(estimator, [0, 1, 5], bend=0.1)
    stream = state.streams[0]
    for gap in range(1, 6):
        guess = estimator.estimate(state, make_step(5 + gap, (start, None)))[0]
        plain = stream.forecast(gap, False)
        owed = REPAID / 2 * stream.innovation if gap < 4 else torch.zeros_like(plain)
        assert guess is not None
        torch.testing.assert_close(guess - plain, owed, rtol=1e-4, atol=1e-4)


def test_nothing_is_known_before_two_steps_were_computed() -> None:
    estimator = OnlineEstimator()
    for computed, known in (([0], False), ([0, 1], True)):
        state, start, _ = line(estimator, computed)
        assert estimator.ready(state, make_step(2, (start, None))) is known
        assert (estimator.expected(state) is not None) is known


def told(index: int, *samples: list[float]) -> Step:
    return replace(make_step(index), expected=lambda: list(samples))


def test_bounds_add_up_to_the_budget_and_the_worst_sample_decides() -> None:
    gate = OnlineGate(0.5, ErrorBudget(rtol=0.1), 9)  # the median: the spread adds nothing
    better, worse = [math.log(0.001), 1.0, 0.3, 0.0], [math.log(0.02), 1.0, 0.3, 0.0]
    state = gate.settled(gate.init(), told(0), gate.judge(None, told(0))[0], True)
    state = gate.settled(state, told(4), gate.judge(state, told(4))[0], True)
    seen = []
    for index in (5, 6, 7):
        verdict, state = gate.judge(state, told(index, better, worse))
        seen.append((verdict.reuse, verdict.statistic, verdict.critical))
        state = gate.settled(state, told(index), verdict, False)
    assert [reuse for reuse, *_ in seen] == [True, True, False]
    assert [it for _, *it in seen] == [pytest.approx(it) for it in ([0.02, 0.1], [0.04, 0.08], [0.06, 0.04])]


def test_a_skip_is_at_most_twice_as_long_as_the_one_before() -> None:
    gate, nothing = OnlineGate(0.05, ErrorBudget(rtol=1.0), 9), [math.log(1e-6), 1.0, 0.0, 0.0]
    state, computed = None, []
    for index in range(40):
        verdict, state = gate.judge(state, told(index, nothing))
        computed += [] if verdict.reuse else [index]
        state = gate.settled(state, told(index), verdict, not verdict.reuse)
    assert computed == [0, 2, 6, 14, 24, 34], "and at most longest estimates"


def test_a_wider_spread_and_a_rising_level_ask_for_more() -> None:
    calm, wide, rising = (
        [math.log(0.02), 1.0, spread, trend] for spread, trend in ((0.0, 0.0), (0.5, 0.0), (0.0, 1.0))
    )
    gate = OnlineGate(0.05, ErrorBudget(rtol=1.0), 9)
    state = gate.settled(None, told(0), gate.judge(None, told(0))[0], True)
    bounds = [gate.judge(state, told(1, sample))[0].statistic for sample in (calm, wide, rising)]
    assert bounds == [pytest.approx(it) for it in (0.02, 0.02 * math.exp(0.5 * 1.6448536), 0.02 * math.e)]


def test_one_read_from_the_device_serves_all_spans_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, ...]] = []
    tolist = torch.Tensor.tolist

    def counted(self: torch.Tensor) -> Any:
        reads.append(tuple(self.shape))
        return tolist(self)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    model = TinyDiT()
    with tenuto.attach(model, tenuto.FastCache(fit="online", rtol=0.1, span=1)) as run:
        denoise(model)
    computed = {event.step for event in run.telemetry.events if event.decision == "compute"}
    assert run.telemetry.reuse_ratio > 0
    assert 0 < len(reads) <= len(computed), "none at a step that follows an estimated one"
    assert set(reads) == {(4, 4, 4)}, "spans, samples of both guidance branches, numbers"
