"""FastCache: the map against its reference form, the gate by hand, the fit against a known truth."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from stepping import decisions, full, make_step

import tenuto
from tenuto.budget import ErrorBudget
from tenuto.calibration import Profile
from tenuto.diffusion.policies.fastcache import BudgetGate, Chunks, InnovationMap, false_reuse_rates
from tenuto.diffusion.policy import Span, Streams
from tenuto.diffusion.trajectory import Past, Schedule, features, follow
from tenuto.errors import CalibrationError, PolicyError
from tenuto.gate import Gate
from tenuto.testing import TinyDiT, denoise, profile_for

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, RANK, BINS, GAPS = 4, 2, 5, 3
SCHEDULE = Schedule((900.0, 700.0, 500.0, 300.0, 100.0))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def past(seed: int = 1) -> Past:
    """Two computed steps, 1 and 3, of an image stream [2, 3, 4] and a text stream [2, 5, 4] beside it."""
    shapes, found = ((2, 3, WIDTH), (2, 5, WIDTH)), None
    for index in (1, 3):
        hidden, residual = ([noise(*s, seed=seed + 10 * index + k) for s in shapes] for k in (0, 5))
        found = follow(found, index, tuple(hidden), tuple(residual))
    assert found is not None
    return found


def maps(streams: int = 2) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
    return {
        (0, stream): (
            noise(BINS, GAPS, 3 * WIDTH + 1, RANK, seed=stream),
            noise(BINS, GAPS, RANK, WIDTH, seed=stream + 7),
        )
        for stream in range(streams)
    }


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_the_map_equals_its_reference_form(gap: int) -> None:
    known, weights = past(), maps()
    hidden = noise(2, 3, WIDTH, seed=30), noise(2, 5, WIDTH, seed=31)
    place = 4
    step = make_step(3 + gap, hidden, timestep=SCHEDULE.timesteps[place])
    found = InnovationMap(SCHEDULE, weights).estimate(known, step)
    for stream in range(2):
        down, up = (half[place, gap - 1] for half in weights[0, stream])
        before = known.residual[stream]
        assert before is not None
        expected = before + (features(known, gap, stream, hidden[stream]) @ down @ up).view_as(before)
        torch.testing.assert_close(found[stream], expected, rtol=1e-5, atol=1e-5)


def test_a_map_of_zeros_repeats_the_residual() -> None:
    known = past()
    nothing = {key: (a * 0, b * 0) for key, (a, b) in maps().items()}
    found = InnovationMap(SCHEDULE, nothing).estimate(known, make_step(5, known.hidden, timestep=300.0))
    assert all(map(torch.equal, found, known.residual))  # type: ignore[arg-type]


def test_bins_may_be_fewer_than_steps() -> None:
    weights = {(0, 0): tuple(half[:2] for half in maps(1)[0, 0])}
    known = past()
    estimator = InnovationMap(SCHEDULE, weights)  # type: ignore[arg-type]
    only: Streams = (known.hidden[0],)
    short = Past(known.index, only, known.residual[:1], known.slope[:1])
    found = [estimator.estimate(short, make_step(4, only, timestep=t))[0] for t in SCHEDULE.timesteps]
    same = [torch.equal(a, b) for a, b in pairwise(found)]  # type: ignore[arg-type]
    assert same == [True, True, False, True], "five steps in two bins: 0 0 0 1 1"


def test_a_stream_without_a_residual_is_not_estimated_and_costs_nothing() -> None:
    image, text = noise(2, 3, WIDTH), noise(2, 5, WIDTH, seed=1)
    estimator = InnovationMap(SCHEDULE, maps(streams=1))
    state = estimator.observe(estimator.init(), make_step(0, (image, text)), (image, None))
    step = make_step(1, (image, text), timestep=700.0)
    assert estimator.ready(state, step)
    found = estimator.estimate(state, step)
    assert found[0] is not None and found[1] is None
    alone = make_step(1, (image, None), timestep=700.0)
    assert estimator.flops(step) == estimator.flops(alone) > 0


def test_operations_and_bytes() -> None:
    estimator = InnovationMap(SCHEDULE, maps(streams=1))
    rows = 2 * 3
    products = 2 * rows * (3 * WIDTH) * RANK + 2 * rows * RANK * WIDTH
    assert estimator.flops(make_step(4, (full(0),))) == products
    assert estimator.nbytes() == 4 * BINS * GAPS * ((3 * WIDTH + 1) * RANK + RANK * WIDTH)


def test_the_nearest_calibrated_step() -> None:
    assert [SCHEDULE.place(t, 5) for t in (900.0, 801.0, 799.0, 0.0)] == [0, 0, 1, 4]
    assert SCHEDULE.place(500.0, None) == 2
    with pytest.raises(CalibrationError, match=r"for 5 denoising steps; this generation has 7\. .* --steps 7\.$"):
        SCHEDULE.place(500.0, 7)


def budget_gate(scale: float = 4.0, dof: float = 2.0, rtol: float = 0.1, alpha: float = 0.05) -> BudgetGate:
    return BudgetGate(alpha, alpha, rtol, GAPS, SCHEDULE, ((((scale, dof),) * GAPS,) * BINS,))


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
    assert left == [(True, pytest.approx(0.07)), (True, pytest.approx(0.01)), (False, pytest.approx(0.1))]
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
    traces = [{("cond", 0): generation(seed, 0.3)} for seed in range(1000, 1200)]
    for alpha in (0.05, 0.2, 0.5):
        rates = false_reuse_rates(profile, traces, alpha)
        assert len(rates) == len(traces)
        assert math.fsum(rates) / len(rates) == pytest.approx(alpha, abs=0.02, rel=0.1)


def test_profiles_that_do_not_fit() -> None:
    with pytest.raises(CalibrationError, match="run `tenuto calibrate fastcache`"):
        tenuto.FastCache().compose(None)
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
    longest = [reused(rtol=9.0, longest=n) for n in (1, 2, 6)]
    for counts in (budgets, alphas, longest):
        assert counts == sorted(counts) and counts[0] < counts[-1], counts
    assert budgets[0] == 0
    with pytest.raises(CalibrationError, match=r"skips of up to 6 steps, not longest=60"):
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


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"alpha": 0.0}, "alpha=0.0 is not a rate"),
        ({"alpha": 1.0}, "alpha=1.0 is not a rate"),
        ({"rtol": -0.1}, "rtol and span must be zero or more"),
        ({"span": -1}, "rtol and span must be zero or more"),
        ({"longest": 0}, "longest and warmup at least 1"),
        ({"warmup": 0}, "longest and warmup at least 1"),
    ],
)
def test_numbers_it_refuses(numbers: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=f"^fastcache: .*{said}"):
        tenuto.FastCache(**numbers)
