"""AdaCorrection: what the last computed step showed to be wrong is carried on, in proportion to progress."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stepping import full, make_step

import tenuto
from tenuto import catalog
from tenuto.diffusion.policies.adacorrection import (
    AdaCorrection,
    BlendAll,
    DriftedTokens,
    OffsetCorrection,
    drift,
    offset_weight,
)
from tenuto.diffusion.policies.every_n import EveryN, StoredResidual
from tenuto.diffusion.saliency import MotionTokens
from tenuto.errors import PolicyError
from tenuto.measure.speed import claim
from tenuto.records.timing import Timing
from tenuto.testing import TinyDiT, check_feature_policy, denoise

pytestmark = pytest.mark.usefixtures("one_thread")


def after(steps: list[tuple[int, float, float]], gain: float = 1.0, **options: Any) -> tuple[OffsetCorrection, Any]:
    """The estimator and its state after computed steps ``(index, input, residual)``."""
    estimator = OffsetCorrection(StoredResidual(), gain)
    state = estimator.init()
    for index, given, residual in steps:
        state = estimator.observe(state, make_step(index, (full(given), None), **options), (full(residual), None))
    return estimator, state


def value(pair: tuple[OffsetCorrection, Any], index: int, given: float) -> float:
    estimator, state = pair
    image, text = estimator.estimate(state, make_step(index, (full(given), None)))
    assert image is not None and text is None and bool((image == image[0, 0, 0]).all())
    return float(image[0, 0, 0])


def test_a_straight_trajectory_is_followed_exactly() -> None:
    straight = after([(0, 1.0, 10.0), (4, 5.0, 18.0)])
    assert [value(straight, 4 + k, 5.0 + k) for k in (1, 2, 3)] == pytest.approx([20.0, 22.0, 24.0])


def test_progress_is_measured_by_the_input_not_by_the_clock() -> None:
    pair = after([(0, 1.0, 10.0), (4, 5.0, 18.0)])
    assert value(pair, 6, 5.0) == 18.0, "no progress, the estimate stands"
    assert value(pair, 6, 4.0) == 18.0, "nor where the input has turned back"
    assert value(pair, 6, 6.0) == pytest.approx(20.0), "a quarter of the way"
    assert value(pair, 6, 99.0) == pytest.approx(18.0 + 8.0), "at most twice what the clock says"


def test_the_gain_damps() -> None:
    steps = [(0, 1.0, 10.0), (4, 5.0, 18.0)]
    assert value(after(steps, gain=0.5), 6, 7.0) == pytest.approx(20.0)
    assert value(after(steps, gain=0.0), 6, 7.0) == 18.0


def test_samples_of_a_batch_progress_on_their_own() -> None:
    pair = after([(0, 1.0, 10.0), (4, 5.0, 18.0)])
    given = full(5.0)
    given[1] += 2
    image = pair[0].estimate(pair[1], make_step(6, (given, None)))[0]
    assert image is not None and image[:, 0, 0].tolist() == pytest.approx([18.0, 22.0])


def test_one_computed_step_shows_nothing_yet() -> None:
    pair = after([(0, 1.0, 10.0)])
    assert value(pair, 1, 2.0) == 10.0
    estimator = OffsetCorrection(StoredResidual(), 1.0)
    assert not estimator.ready(estimator.init(), make_step())


def test_a_stream_that_comes_late_is_not_corrected_yet() -> None:
    estimator, state = after([(0, 1.0, 10.0)])
    state = estimator.observe(state, make_step(1, (full(2), full(0))), (full(12), full(3)))
    image, text = estimator.estimate(state, make_step(2, (full(3), full(0))))
    assert image is not None and text is not None
    assert (float(image.mean()), float(text.mean())) == pytest.approx((14.0, 3.0))


def test_half_precision_stays_half() -> None:
    estimator = OffsetCorrection(StoredResidual(), 0.7)
    state = estimator.init()
    for index in range(2):
        state = estimator.observe(state, make_step(index, (full(index).bfloat16(),)), (full(9).bfloat16(),))
    found = estimator.estimate(state, make_step(2, (full(2).bfloat16(),)))[0]
    assert found is not None and found.dtype == torch.bfloat16


def test_sums_over_tokens_go_through_reduce() -> None:
    """On two devices with a half of the tokens each, the sums are those of both."""
    pair = after([(0, 1.0, 10.0), (4, 5.0, 18.0)])
    step = replace(make_step(6, (full(6.0), None)), reduce=lambda sums: sums + torch.tensor([[96.0], [0.0]]))
    image = pair[0].estimate(pair[1], step)[0]
    assert image is not None and float(image.mean()) > 20.0


class Priced(StoredResidual):
    def flops(self, state: Any, step: Any) -> float:
        return 7.0

    def nbytes(self) -> int:
        return 100


def test_the_estimate_made_at_a_computed_step_is_paid_for() -> None:
    estimator = OffsetCorrection(Priced(), 1.0)
    state = estimator.observe(estimator.init(), make_step(3, (full(0),)), (full(1),))
    assert [estimator.flops(state, make_step(index)) for index in (4, 5)] == [7.0, 7.0]
    assert [estimator.flops_observed(known, make_step(4)) for known in (None, state)] == [0.0, 7.0]
    assert estimator.nbytes() == 100


def test_drift_is_free_of_scale_and_of_limits() -> None:
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    reference = hidden + torch.tensor([0.0, 0.1, 1.0, 10.0, 100.0])[:, None]
    found = drift(hidden, reference)
    assert (found[:, 0] == 0).all() and (found.diff(dim=1) > 0).all()
    assert torch.allclose(drift(1000 * hidden, 1000 * reference), found, rtol=1e-4)
    tokens = DriftedTokens(0.4).select(reference, make_step(1, (hidden,)))
    assert tokens is not None and [sorted(row) for row in tokens.tolist()] == [[3, 4]] * 2


def test_the_published_weight_is_what_is_printed_and_saturates() -> None:
    hidden = torch.tensor([[[0.1, -0.1], [0.3, -0.3]]])
    assert float(offset_weight(hidden, hidden)) == pytest.approx(0.2)
    assert float(offset_weight(hidden, hidden + 0.1)) == pytest.approx(0.2 + 0.02)
    assert float(offset_weight(10 * hidden, 10 * hidden)) == 1
    estimate, fresh = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    blended = BlendAll().correct(hidden, make_step(1, (hidden,)), torch.tensor([[0, 1]]), estimate, fresh)
    assert torch.allclose(blended, torch.full((1, 2, 2), 0.2))


def test_the_published_form_saves_nothing_and_says_so() -> None:
    model = TinyDiT()
    plain = denoise(model)
    with tenuto.attach(model, catalog.parse("every_n:n=3+adacorrection:published=true")) as run:
        result = denoise(model)
    assert run.telemetry.counts()["correct"] > 0
    assert run.telemetry.reuse_ratio == 0
    assert run.telemetry.flops == pytest.approx(run.telemetry.full_flops)
    assert torch.allclose(result, plain, atol=0.1)
    timing = Timing(seconds=(1.0,) * 5, baseline_seconds=(2.0,) * 5)
    assert claim(timing, saved=run.telemetry.reuse_ratio > 0, identical=False, exact=False).speedup is None


def error(text: str, steps: int = 20) -> float:
    model = TinyDiT()
    plain = denoise(model, steps=steps)
    with tenuto.attach(model, catalog.parse(text)):
        return float((denoise(model, steps=steps) - plain).norm() / plain.norm())


@pytest.mark.parametrize("inner", ["every_n:n=3", "first_block:threshold=0.2"])
def test_it_is_nearer_than_the_inner_policy_at_the_same_work(inner: str) -> None:
    assert error(f"{inner}+adacorrection") < 0.7 * error(inner)


def test_tokens_are_computed_as_asked() -> None:
    model = TinyDiT()
    with tenuto.attach(model, catalog.parse("every_n:n=3+adacorrection:tokens=0.5")) as run:
        denoise(model)
    assert {event.tokens for event in run.telemetry.events if event.decision == "correct"} == {0.5}
    assert error("every_n:n=3+adacorrection:tokens=0.5") < error("every_n:n=3+adacorrection")
    assert error("every_n:n=3+adacorrection:tokens=1") < 1e-5


def test_wrong_settings_are_refused() -> None:
    inner = EveryN()
    for options in ({"gain": -1.0}, {"tokens": 1.5}, {"tokens": -0.1}):
        with pytest.raises(PolicyError, match="gain must be zero or more"):
            AdaCorrection(inner=inner, **options)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="not around itself"):
        AdaCorrection(inner=AdaCorrection(inner=inner))
    with pytest.raises(PolicyError, match="leave tokens out"):
        AdaCorrection(inner=inner, published=True, tokens=0.5)


@pytest.mark.parametrize("options", [{"tokens": 0.5}, {"published": True}])
def test_one_of_two_policies_computes_tokens(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    composed = replace(EveryN().compose(None), corrector=MotionTokens(0.5))
    monkeypatch.setattr(EveryN, "compose", lambda self, profile: composed)
    with pytest.raises(PolicyError, match="Only one of the two policies may compute tokens"):
        AdaCorrection(inner=EveryN(), **options).compose(None)
    assert AdaCorrection(inner=EveryN()).compose(None).corrector == MotionTokens(0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "first_block:threshold=0.2+adacorrection",
        "fastcache:rtol=0.4+adacorrection",
        "every_n:n=3+adacorrection:tokens=0.5",
    ],
)
def test_the_laws_hold_around_other_policies(text: str) -> None:
    check_feature_policy(catalog.parse(text))
