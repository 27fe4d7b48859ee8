"""The search finds the root of a margin, and the best of many numbers, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

import tenuto
from tenuto.tuner.search import Tried, propose
from tenuto.tuner.space import Axis, Space

FLOAT = Space("fastcache", tenuto.FastCache(rtol=0.15), (Axis("rtol", 0.025, 0.8, False),))
WHOLE = Space("every_n", tenuto.EveryN(n=4), (Axis("n", 1, 12, True),))


def search(
    space: Space, margin: Callable[[float], float], trials: int, *, harder: bool = True
) -> tuple[list[float], list[Tried]]:
    (axis,) = space.axes
    tried: list[Tried] = []
    while len(tried) < trials and (values := propose(space, tried, harder=harder)):
        tried.append(Tried(values, margin(values[axis.option]), 0.0))
    return [it.values[axis.option] for it in tried], tried


@pytest.mark.parametrize("root", [0.03, 0.08, 0.15, 0.3, 0.7])
@pytest.mark.parametrize("curve", [1.0, 3.0], ids=["straight", "bent"])
@pytest.mark.parametrize("harder", [True, False], ids=["quality", "speed"])
def test_a_root_of_a_number(root: float, curve: float, harder: bool) -> None:
    def margin(value: float) -> float:
        far = math.log(root / value)
        return (1 if harder else -1) * math.copysign(abs(far) ** curve, far) * 5

    _, tried = search(FLOAT, margin, 8, harder=harder)
    met = [it.values["rtol"] for it in tried if it.margin >= 0]
    nearest = max(met) if harder else min(met)
    assert abs(math.log(nearest / root)) < math.log(1.15)


def test_steps_instead_of_a_curve() -> None:
    _, tried = search(FLOAT, lambda value: 3.0 if value < 0.21 else -2.0, 8)
    assert 0.19 < max(it.values["rtol"] for it in tried if it.margin >= 0) < 0.21


@pytest.mark.parametrize("root", range(1, 13))
@pytest.mark.parametrize("harder", [True, False])
def test_a_whole_number_is_found_exactly_and_never_tried_twice(root: int, harder: bool) -> None:
    values, tried = search(WHOLE, lambda n: (root - n + 0.5) * (1 if harder else -1), 8, harder=harder)
    assert len(set(values)) == len(values)
    met = [it.values["n"] for it in tried if it.margin >= 0]
    assert (max(met) if harder else min(met, default=13)) == (root if harder else root + 1)


@pytest.mark.parametrize("space", [FLOAT, WHOLE])
def test_it_stops_at_the_ends(space: Space) -> None:
    (axis,) = space.axes
    easy, _ = search(space, lambda value: 1.0, 20)
    hard, _ = search(space, lambda value: -1.0, 20)
    assert (easy[-1], hard[-1]) == (axis.strong, axis.mild)
    assert max(len(easy), len(hard)) <= 8


def test_nothing_to_search_is_one_setting() -> None:
    space = Space("every_n", tenuto.EveryN(), ())
    assert propose(space, [], harder=True) == {}
    assert propose(space, [Tried({}, 1.0, 1.0)], harder=True) is None


def test_more_numbers() -> None:
    axes = (Axis("rtol", 0.02, 0.8, False), Axis("longest", 1, 12, True))
    space = Space("fastcache", tenuto.FastCache(rtol=0.1, longest=6), axes)

    def run(seed: int, trials: int = 30) -> list[Tried]:
        tried: list[Tried] = []
        while len(tried) < trials and (values := propose(space, tried, harder=True, seed=seed)):
            rtol, longest = values["rtol"], values["longest"]
            assert 0.02 <= rtol <= 0.8
            assert longest == int(longest)
            tried.append(Tried(values, 1.0 - math.log(rtol / 0.1) - 0.1 * longest, math.log(rtol) + 0.3 * longest))
        return tried

    def best(tried: list[Tried]) -> float:
        return max(it.gain for it in tried if it.margin >= 0)

    found = run(0)
    assert found[0].values == {"rtol": 0.1, "longest": 6}
    assert len({tuple(it.values.items()) for it in found}) == 30
    assert found[:12] == run(0, 12), "the same seed gives the same search"
    assert best(found) > 0.5 + best(found[:5])
