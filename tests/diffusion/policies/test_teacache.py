"""TeaCache: predicted changes are added up; the polynomial is fitted."""

from __future__ import annotations

import pytest
import torch
from stepping import decisions, full, make_step

import tenuto
from tenuto.calibration import Profile, fingerprint
from tenuto.diffusion.policies.teacache import AccumulatedChange
from tenuto.errors import CalibrationError, PolicyError
from tenuto.testing import TinyDiT, denoise

pytestmark = pytest.mark.usefixtures("one_thread")


def run(gate: AccumulatedChange, values: list[float], total: int | None = None) -> list[tuple[bool, float | None]]:
    """Verdicts and sums while the modulated input takes these values; verdicts are followed."""
    state, found = gate.init(), []
    for index, value in enumerate(values):
        step = make_step(index, modulated=lambda value=value: full(value), total=total)
        verdict, state = gate.judge(state, step)
        state = gate.settled(state, step, verdict, not verdict.reuse)
        found.append((verdict.reuse, verdict.statistic))
    return found


def test_changes_add_up_and_start_again_when_computed() -> None:
    found = run(AccumulatedChange(0.5, (1.0, 0.0)), [1.0, 1.2, 1.5, 1.8, 1.8])
    assert found == [
        (False, None),
        (True, pytest.approx(0.2)),
        (True, pytest.approx(0.2 + 0.25)),
        (False, pytest.approx(0.45 + 0.2)),  # 0.3 / 1.5, compared with the step before and not the last computed one
        (True, 0.0),
    ]


def test_the_polynomial_has_its_highest_power_first() -> None:
    found = run(AccumulatedChange(9.0, (2.0, 3.0, 0.5)), [1.0, 1.5])
    assert found[1] == (True, pytest.approx(2 * 0.25 + 3 * 0.5 + 0.5))


def test_a_negative_prediction_is_no_change() -> None:
    assert run(AccumulatedChange(0.5, (1.0, -1.0)), [1.0, 1.2, 1.4])[2] == (True, 0.0)


def test_at_the_threshold_it_computes() -> None:
    assert run(AccumulatedChange(0.5, (1.0, 0.0)), [1.0, 1.5])[1] == (False, 0.5)
    assert run(AccumulatedChange(0.0, (1.0, 0.0)), [1.0, 1.0])[1] == (False, 0.0)


def test_the_last_step_computes_where_it_is_known() -> None:
    gate = AccumulatedChange(9.0, (1.0, 0.0))
    assert [reuse for reuse, _ in run(gate, [1.0] * 4, total=4)] == [False, True, True, False]
    assert [reuse for reuse, _ in run(gate, [1.0] * 4)] == [False, True, True, True]


def test_the_sum_runs_through_the_warm_up() -> None:
    model = TinyDiT()
    profile = Profile(policy="teacache", fingerprint=fingerprint(model), numbers={"coefficients": [1.0, 0.0]})
    assert decisions(tenuto.TeaCache(threshold=1e9, warmup=3), profile=profile) == "ccc" + "r" * 7
    assert decisions(tenuto.TeaCache(threshold=0.0), profile=profile) == "c" * 10


def test_calibration_fits_output_change_to_input_change() -> None:
    recorder = tenuto.TeaCache().recorder()
    expected = (0.5, -1.0, 2.0, 0.25, 0.125)
    generator = torch.Generator().manual_seed(0)
    for generation in range(4):
        recorder.begin(generation)
        inputs, output = 1.0, 1.0
        for index, change in enumerate([0.0, *torch.rand(8, generator=generator).tolist()]):
            if index:
                predicted = sum(c * change**p for c, p in zip(expected, range(4, -1, -1), strict=True))
                inputs, output = inputs * (1 + change), output * (1 + predicted)
            hidden = full(0.25 * output).double()  # half in the hidden states, half in the residual
            step = make_step(index, (hidden, None), modulated=lambda value=inputs: full(value).double())
            recorder.observe(step, (0.75 / 0.25 * hidden, None))
    tensors, numbers = recorder.fit()
    assert tensors == {} and numbers["pairs"] == 4 * 8
    assert numbers["coefficients"] == pytest.approx(expected, abs=1e-3)


def test_calibration_on_a_model() -> None:
    model = TinyDiT()
    profile = tenuto.calibrate(
        model, tenuto.TeaCache(), lambda seed: denoise(model, seed), seeds=range(2), settings={"steps": 10}
    )
    assert (profile.policy, profile.fingerprint, profile.settings) == ("teacache", fingerprint(model), {"steps": 10})
    assert len(profile.numbers["coefficients"]) == 5 and profile.numbers["pairs"] == 2 * 9


def test_too_little_to_fit() -> None:
    model = TinyDiT()
    with pytest.raises(CalibrationError, match=r"^4 step pairs cannot fit a polynomial of degree 4"):
        tenuto.calibrate(model, tenuto.TeaCache(), lambda seed: denoise(model, seed, steps=5), seeds=(1,), settings={})


@pytest.mark.parametrize("profile", [None, Profile(policy="teacache", fingerprint="0")])
def test_it_needs_its_coefficients(profile: Profile | None) -> None:
    with pytest.raises(CalibrationError, match="run `tenuto calibrate teacache`"):
        tenuto.TeaCache().compose(profile)


@pytest.mark.parametrize("numbers", [{"threshold": -0.1}, {"warmup": 0}])
def test_numbers_it_refuses(numbers: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match=r"^teacache: .*threshold must be zero or more, warmup at least 1\.$"):
        tenuto.TeaCache(**numbers)  # type: ignore[arg-type]
