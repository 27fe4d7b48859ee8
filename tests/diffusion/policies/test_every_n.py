"""EveryN: the pattern of computed steps, and plain reuse."""

from __future__ import annotations

import pytest
import torch
from stepping import decisions, full, make_step

import tenuto
from tenuto.diffusion.policies.every_n import Interval, StoredResidual, WholeStack
from tenuto.diffusion.policy import Span
from tenuto.errors import PolicyError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("policy", "pattern"),
    [
        (tenuto.EveryN(n=1), "cccccccccc"),
        (tenuto.EveryN(n=2), "crcrcrcrcr"),
        (tenuto.EveryN(n=3), "crrcrrcrrc"),
        (tenuto.EveryN(n=3, warmup=3), "cccrrcrrcr"),
        (tenuto.EveryN(n=20), "crrrrrrrrr"),
        (tenuto.EveryN(n=2, warmup=20), "cccccccccc"),
    ],
    ids=repr,
)
def test_the_pattern(policy: tenuto.EveryN, pattern: str) -> None:
    assert decisions(policy) == pattern


def test_the_interval_by_itself() -> None:
    gate = Interval(3, 2)
    found = [gate.judge(None, make_step(index))[0].reuse for index in range(8)]
    assert found == [False, False, True, True, False, True, True, False]


def test_the_whole_stack_is_one_span_per_list() -> None:
    assert WholeStack().spans((3,)) == (Span(0, 0, 2),)
    assert WholeStack().spans((2, 1, 4)) == (Span(0, 0, 1), Span(1, 2, 2), Span(2, 3, 6))
    assert WholeStack().spans((2, 1, 4))[2].blocks == 4


def test_the_residual_is_repeated_as_it_was() -> None:
    estimator, residual = StoredResidual(), (full(2), None)
    assert not estimator.ready(estimator.init(), make_step())
    state = estimator.observe(estimator.init(), make_step(), residual)
    assert estimator.ready(state, make_step(5))
    found = estimator.estimate(state, make_step(5, (full(9), None)))
    assert found[0] is not None and torch.equal(found[0], full(2)) and found[1] is None


@pytest.mark.parametrize("numbers", [{"n": 0}, {"warmup": 0}, {"n": -3}])
def test_numbers_it_refuses(numbers: dict[str, int]) -> None:
    with pytest.raises(PolicyError, match=r"^every_n: n=-?\d, warmup=\d\. Both must be at least 1\.$"):
        tenuto.EveryN(**numbers)
