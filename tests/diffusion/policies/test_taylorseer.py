"""TaylorSeer: a forecast of each order is exact where the residual is a polynomial of that order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stepping import decisions, full, make_step

import tenuto
from tenuto.diffusion.policies.taylorseer import Taylor
from tenuto.errors import PolicyError

pytestmark = pytest.mark.usefixtures("one_thread")


def forecast(order: int, residual: Callable[[int], float], computed: list[int], ahead: int) -> float:
    estimator = Taylor(order)
    state = estimator.init()
    for index in computed:
        state = estimator.observe(state, make_step(index), (full(residual(index)), None))
    image, text = estimator.estimate(state, make_step(computed[-1] + ahead))
    assert image is not None and text is None
    assert torch.equal(image, image.flatten()[0].expand_as(image))
    return float(image.mean())


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_constants(order: int, ahead: int) -> None:
    assert forecast(order, lambda k: 3.0, [0, 1, 2, 5], ahead) == pytest.approx(3.0)


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_lines(order: int, ahead: int) -> None:
    assert forecast(order, lambda k: 2.0 - 0.5 * k, [0, 1, 2, 5], ahead) == pytest.approx(2.0 - 0.5 * (5 + ahead))


def test_order_zero_repeats() -> None:
    assert forecast(0, lambda k: 2.0 * k, [0, 1, 4], 2) == 8.0


def test_order_one_by_hand() -> None:
    assert forecast(1, lambda k: float(k * k), [1, 4], 2) == pytest.approx(16 + 2 * (16 - 1) / 3)


def test_order_two_by_hand() -> None:
    # k^2 at 0, 3, 6: 36; first differences 3, 9 per step; their difference 2 per step: the Taylor series of the paper,
    # 36 + 9 k + 2 k^2 / 2, takes the difference over the last interval for the derivative at its end.
    assert forecast(2, lambda k: float(k * k), [0, 3, 6], 1) == pytest.approx(36 + 9 + 1)
    assert forecast(2, lambda k: float(k * k), [0, 3, 6], 2) == pytest.approx(36 + 18 + 4)


def test_order_two_finds_the_second_derivative_of_a_parabola() -> None:
    """Exact but for the half interval by which a backward difference lags: (k + a)^2 - a, a = interval * ahead."""
    for interval in (1, 2, 3):
        last = 2 * interval
        for ahead in (1, 2):
            found = forecast(2, lambda k: float(k * k), [0, interval, last], ahead)
            assert found == pytest.approx((last + ahead) ** 2 - interval * ahead)


def test_until_enough_was_seen_the_order_is_lower() -> None:
    assert forecast(2, lambda k: float(k * k), [3], 2) == 9
    assert forecast(2, lambda k: float(k * k), [3, 4], 2) == pytest.approx(16 + 2 * 7)


def test_only_as_many_terms_as_the_order_needs_are_kept() -> None:
    estimator = Taylor(2)
    state = estimator.init()
    assert not estimator.ready(state, make_step())
    for index in range(6):
        state = estimator.observe(state, make_step(index), (full(index), None))
    assert state is not None and len(state.terms) == 3
    assert estimator.kind == "forecast"


@pytest.mark.parametrize(
    ("policy", "pattern"),
    [
        (tenuto.TaylorSeer(interval=1), "c" * 10),
        (tenuto.TaylorSeer(interval=3, warmup=3), "cccffcffcf"),
        (tenuto.TaylorSeer(interval=2, warmup=1, order=0), "cfcfcfcfcf"),
    ],
    ids=repr,
)
def test_the_pattern(policy: tenuto.TaylorSeer, pattern: str) -> None:
    assert decisions(policy) == pattern


@pytest.mark.parametrize("numbers", [{"interval": 0}, {"order": -1}, {"order": 5}, {"warmup": 0}])
def test_numbers_it_refuses(numbers: dict[str, int]) -> None:
    with pytest.raises(PolicyError, match=r"^taylorseer: .*at least 1, order 0 to 4\.$"):
        tenuto.TaylorSeer(**numbers)
