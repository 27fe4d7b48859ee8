"""FastCache: the gates by hand, the fit against a known truth, the options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stepping import decisions, full, make_step

import tenuto
from tenuto.budget import ErrorBudget
from tenuto.calibration import Profile
from tenuto.diffusion.gate import Gate
from tenuto.diffusion.policies.fastcache import BudgetGate, Chunks, PublishedGate, false_reuse_rates
from tenuto.diffusion.policy import Span, Streams
from tenuto.diffusion.refit import samples
from tenuto.diffusion.trajectory import StepSchedule
from tenuto.errors import CalibrationError, PolicyError
from tenuto.testing import TinyDiT, denoise, profile_for
from tenuto.testing.diffusion import law_errors_within_budget

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, BINS, GAPS = 4, 5, 3
SCHEDULE = StepSchedule((900.0, 700.0, 500.0, 300.0, 100.0))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def budget_gate(
    scale: float = 4.0,
    dof: float = 2.0,
    rtol: float = 0.1,
    alpha: float = 0.05,
    total: float = math.inf,
    worst: float = 0.0,
) -> BudgetGate:
    budget = ErrorBudget(rtol=rtol, total=total)
    return BudgetGate(alpha, alpha, budget, GAPS, SCHEDULE, ((((scale, dof, worst),) * GAPS,) * BINS,))


def test_the_gate_spends_from_the_budget_and_renews_it() -> None:
    gate = budget_gate(scale=0.01, dof=1e6)  # sure of an error of a tenth of the change
    step = make_step(0, (full(1), None), timestep=900.0)
    verdict, state = gate.judge(gate.init(), step)
    assert not verdict.reuse
    state = gate.settled(state, step, verdict, True)
    left = []
    for index, value in ((1, 1.3), (2, 1.6), (3, 1.6)):  # changes of 0.3, 0.6, 0.6 of the computed step
        step = make_step(index, (full(value), None), timestep=500.0)
        verdict, state = gate.judge(state, step)
        state = gate.settled(state, step, verdict, not verdict.reuse)
        assert state is not None
        left.append((verdict.reuse, state.budget.left))
    assert left == [(True, pytest.approx(0.07, abs=1e-3)), (True, pytest.approx(0.01, abs=1e-3)), (False, 0.1)]
    assert state is not None and state.index == 3 and torch.equal(state.hidden, full(1.6))


def test_the_gate_asks_the_calibrated_test() -> None:
    gate = budget_gate()
    state = gate.settled(None, make_step(0, (full(1), None)), Gate(scale=1, dof=1, alpha=0.5).judge(1, 1), True)
    for change in (0.01, 0.02, 0.03, 0.04, 0.05):
        verdict, _ = gate.judge(state, make_step(1, (full(1 + change), None), timestep=500.0))
        expected = Gate(scale=4.0, dof=2.0, alpha=0.05).judge(change, 0.1)
        assert verdict.reuse == expected.reuse
        assert verdict.statistic == pytest.approx(change**2, rel=1e-4)
        assert verdict.critical == pytest.approx(expected.critical)


def test_the_largest_error_seen_must_fit_too() -> None:
    step = make_step(1, (full(1.1), None), timestep=500.0)  # a change of a tenth
    for worst, reuse in ((0.6, True), (0.7, False)):  # errors of up to 0.077 and 0.084, and a quarter more
        gate = budget_gate(scale=0.01, dof=1e6, worst=worst)
        state = gate.settled(None, make_step(0, (full(1), None)), Gate(scale=1, dof=1, alpha=0.5).judge(1, 1), True)
        assert gate.judge(state, step)[0].reuse == reuse


def test_the_worst_sample_decides() -> None:
    gate = budget_gate()
    state = gate.settled(None, make_step(0, (full(1), None)), Gate(scale=1, dof=1, alpha=0.5).judge(1, 1), True)
    hidden = full(1)
    hidden[1] = 1.5
    verdict, _ = gate.judge(state, make_step(1, (hidden, None), timestep=500.0))
    assert not verdict.reuse and verdict.statistic == pytest.approx(0.25)


def test_no_longer_than_it_was_calibrated_for() -> None:
    gate = budget_gate(scale=0.0)
    state = gate.settled(None, make_step(0, (full(1), None)), Gate(scale=1, dof=1, alpha=0.5).judge(1, 1), True)
    reuse = [gate.judge(state, make_step(i, (full(1), None), timestep=500.0))[0].reuse for i in range(1, 6)]
    assert reuse == [True] * GAPS + [False] * 2


def test_spans() -> None:
    assert Chunks(0).spans((3, 2)) == (Span(0, 0, 2), Span(1, 3, 4))
    assert Chunks(2).spans((3, 2)) == (Span(0, 0, 1), Span(1, 2, 2), Span(2, 3, 4))
    assert Chunks(9).spans((3,)) == (Span(0, 0, 2),)


LINEAR = noise(WIDTH, WIDTH, seed=99) * 0.3


def generation(seed: int, wobble: float, steps: int = 6) -> list[tuple[Streams, Streams]]:
    """A random walk whose residual is a fixed linear map of the hidden states, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    hidden, found = torch.zeros(2, 30, WIDTH), list[tuple[Streams, Streams]]()
    for index in range(steps):
        step, noise = torch.randn(2, 2, 30, WIDTH, generator=generator)
        hidden = hidden + (0.3 if index else 1.0) * step
        found.append(((hidden, None), (hidden @ LINEAR + wobble * noise, None)))
    return found


def fitted(generations: int = 6, wobble: float = 0.0, **options: Any) -> Profile:
    recorder = tenuto.FastCache(**options).recorder()
    for number in range(generations):
        recorder.begin(number)
        for index, (hidden, residual) in enumerate(generation(number, wobble)):
            recorder.observe(make_step(index, hidden, timestep=900.0 - 100 * index), residual)
    tensors, numbers = recorder.fit()
    return Profile(policy="fastcache", fingerprint="", numbers=numbers, tensors=tensors)


def test_a_linear_law_is_found() -> None:
    profile = fitted(longest=2)
    estimator = tenuto.FastCache(longest=2).compose(profile).estimator
    known, new = noise(2, 30, WIDTH, seed=1), noise(2, 30, WIDTH, seed=2)
    for gap in (1, 2):
        state = estimator.observe(None, make_step(2, (known, None)), (known @ LINEAR, None))
        found = estimator.estimate(state, make_step(2 + gap, (new, None), timestep=900.0 - 100 * (2 + gap)))[0]
        assert found is not None and found.dtype == torch.float32
        assert float((found - new @ LINEAR).norm() / (new @ LINEAR).norm()) < 0.02  # maps are kept in half precision


def test_the_run_budget_ends_reuse_for_good() -> None:
    gate = budget_gate(scale=0.01, dof=1e6, total=0.06, worst=0.01)
    step = make_step(0, (full(1), None), timestep=900.0)
    state = gate.settled(None, step, gate.judge(None, step)[0], True)
    reused = []
    for index in range(1, 5):  # changes of 0.3: 0.03, and a quarter more at worst; every other step is computed
        step = make_step(index, (full(1.3 if index % 2 else 1), None), timestep=500.0)
        verdict, state = gate.judge(state, step)
        computed = index % 2 == 0
        state = gate.settled(state, step, verdict, computed)
        reused.append(verdict.reuse)
    assert reused[0] and not reused[2], "0.0375 of 0.06 is spent: a second estimate does not fit"


def test_an_overruled_estimate_costs_nothing() -> None:
    gate = budget_gate(scale=0.01, dof=1e6, total=0.05)
    step = make_step(0, (full(1), None), timestep=900.0)
    state = gate.settled(None, step, gate.judge(None, step)[0], True)
    for index in range(1, 5):  # the gate would reuse, but warm-up computes
        step = make_step(index, (full(1 + 0.1 * index), None), timestep=500.0)
        verdict, state = gate.judge(state, step)
        assert verdict.reuse
        state = gate.settled(state, step, verdict, True)
    assert state is not None and state.budget.spent_total == 0


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [{"total": 0.2}, {"span": 1, "total": 0.1}])
def test_the_total_budget_is_kept_too(numbers: dict[str, Any]) -> None:
    policy = tenuto.FastCache(rtol=0.4, **numbers)
    law_errors_within_budget(policy)
    assert decisions(policy, profile=profile_for(policy, TinyDiT())).count("r") > 0


def test_the_published_gate_never_rejects() -> None:
    for alpha in (0.001, 0.2):
        gate = PublishedGate(alpha, longest=3)
        step = make_step(0, (full(1), None))
        verdict, state = gate.judge(None, step)
        state = gate.settled(state, step, verdict, True)
        for index, value in ((1, 1.6), (2, 1.0), (3, 1.9)):  # changes of 60, 38 and 90 per cent
            verdict, state = gate.judge(state, make_step(index, (full(value), None)))
            assert verdict.reuse and verdict.critical is not None and verdict.critical > 1
        verdict, _ = gate.judge(state, make_step(4, (full(1.9), None)))
        assert not verdict.reuse, "only the longest skip ends it"


def test_closed_loop_pairs_enter_the_fit() -> None:
    policy, model = tenuto.FastCache(rtol=0.3), TinyDiT()
    profile = profile_for(policy, model)
    assert profile is not None
    ladder = profile.numbers["ladder"]
    assert [rung["rung"] for rung in ladder] == ["residual", "affine", "low_rank", "full"]
    assert sum(rung["cells"] for rung in ladder) == len(profile.numbers["cells"])
    assert min(rung["rms_error"] for rung in ladder) < ladder[0]["rms_error"], "a fitted rung beats the null model"


@pytest.mark.parametrize("rung", ["residual", "affine", "low_rank", "full"])
def test_a_rung_can_be_forced(rung: str) -> None:
    profile = fitted(rung=rung)
    assert [line["rung"] for line in profile.numbers["ladder"]] == [rung]
    for chosen in (rung, "auto"):
        tenuto.FastCache(rung=chosen).compose(profile)
    other = "affine" if rung == "full" else "full"
    with pytest.raises(CalibrationError, match=f"for fastcache:rung={rung}, not rung={other}"):
        tenuto.FastCache(rung=other).compose(profile)


def test_what_was_never_seen_is_never_reused() -> None:
    profile = fitted(longest=4)
    gates = profile.numbers["gates"]
    assert profile.numbers["longest"] == 4 and len(gates) == 1 and len(gates[0]) == 6
    gate = Gate(scale=gates[0][1][3][0], dof=gates[0][1][3][1], alpha=0.5)  # step 1 is never four steps after another
    assert not gate.judge(1e-3, 0.5).reuse


def test_more_noise_is_a_wider_gate() -> None:
    scales = [fitted(wobble=wobble).numbers["gates"][0][3][0][0] for wobble in (0.0, 0.1, 0.5)]
    assert scales == sorted(scales) and scales[-1] > 10 * scales[0]


def test_the_false_reuse_rate_of_generations_not_seen_is_alpha() -> None:
    profile = fitted(generations=60, wobble=0.3, longest=2)
    schedule = StepSchedule(tuple(profile.numbers["timesteps"]))
    seen = [list(samples({("cond", 0): generation(seed, 0.3)}, schedule, 2)) for seed in range(1000, 1200)]
    for alpha in (0.05, 0.2, 0.5):
        rates = false_reuse_rates(profile, seen, alpha)
        assert len(rates) == len(seen)
        assert math.fsum(rates) / len(rates) == pytest.approx(alpha, abs=0.02, rel=0.1)


def test_profiles_that_do_not_fit() -> None:
    with pytest.raises(CalibrationError, match="run `tenuto calibrate fastcache`"):
        tenuto.FastCache(fit="profile").compose(None)
    with pytest.raises(CalibrationError, match="run `tenuto calibrate fastcache`"):
        tenuto.FastCache().compose(Profile(policy="fastcache", fingerprint=""))
    with pytest.raises(CalibrationError, match=r"for fastcache:span=0, not span=2\."):
        tenuto.FastCache(span=2).compose(fitted())
    with pytest.raises(CalibrationError, match=r"give at least \d seeds"):
        fitted(generations=1)


def test_a_larger_budget_and_a_larger_alpha_reuse_more() -> None:
    model = TinyDiT()
    profile = profile_for(tenuto.FastCache(), model)
    assert profile is not None

    def reused(**numbers: Any) -> int:
        return decisions(tenuto.FastCache(**numbers), profile=profile).count("r")

    budgets = [reused(rtol=rtol) for rtol in (0.0, 0.01, 0.1, 1.0)]
    alphas = [reused(rtol=0.03, alpha=alpha) for alpha in (0.001, 0.05, 0.5, 0.99)]
    longest = [reused(rtol=9.0, longest=n) for n in (1, 2, 9)]
    for counts in (budgets, alphas, longest):
        assert counts == sorted(counts) and counts[0] < counts[-1], counts
    assert budgets[0] == 0
    with pytest.raises(CalibrationError, match=r"skips of up to 9 steps, not longest=60"):
        reused(rtol=9.0, longest=60)


def test_spans_are_decided_one_by_one() -> None:
    model, policy = TinyDiT(), tenuto.FastCache(span=1, rtol=0.3)
    with tenuto.attach(model, policy, profile=profile_for(policy, model)) as run:
        result = denoise(model)
    assert result.isfinite().all()
    assert {(event.first_block, event.last_block) for event in run.telemetry.events} == {(i, i) for i in range(4)}
    assert 0 < run.telemetry.reuse_ratio < 1


def test_a_budget_is_a_fraction() -> None:
    assert ErrorBudget(rtol=tenuto.FastCache().rtol).left == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_some_tokens_are_computed_at_estimated_steps(merge: bool) -> None:
    model, plain = TinyDiT(), denoise(TinyDiT())
    errors = {}
    for policy in (tenuto.FastCache(rtol=0.4), tenuto.FastCache(rtol=0.4, tokens=0.5, merge=merge)):
        with tenuto.attach(model, policy, profile=profile_for(policy, model)) as run:
            errors[policy.tokens] = float((denoise(model) - plain).norm() / plain.norm())
    decisions = run.telemetry.counts()
    assert decisions["correct"] > 0 == decisions["reuse"]
    assert {event.tokens for event in run.telemetry.events} == {0.0, 0.5}
    assert 0 < errors[0.5] < 2 * errors[0.0]


@pytest.mark.parametrize("key", ["gate", "rung"])
def test_closed_names(key: str) -> None:
    with pytest.raises(PolicyError, match=f"fastcache has no {key} 'calibratd'"):
        tenuto.FastCache(**{key: "calibratd"})


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"alpha": 0.0}, "alpha=0.0 is not a rate"),
        ({"alpha": 1.0}, "alpha=1.0 is not a rate"),
        ({"rtol": -0.1}, "rtol, total and span must be zero or more"),
        ({"total": -1.0}, "rtol, total and span must be zero or more"),
        ({"span": -1}, "rtol, total and span must be zero or more"),
        ({"tokens": 1.5}, "tokens is a fraction from 0 to 1"),
        ({"merge": True}, "merge needs it above 0"),
        ({"longest": 0}, "longest and warmup at least 1"),
        ({"warmup": 0}, "longest and warmup at least 1"),
    ],
)
def test_numbers_it_refuses(numbers: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=f"^fastcache: .*{said}"):
        tenuto.FastCache(**numbers)
