"""What is searched is read from the policy classes."""

from __future__ import annotations

from typing import Any

import pytest

import tenuto
from tenuto import catalog
from tenuto.catalog import MethodInfo
from tenuto.errors import PolicyError
from tenuto.tuner.space import Axis, space_of


@pytest.mark.parametrize("name", ["every_n", "fastcache", "first_block", "taylorseer", "teacache"])
def test_a_sweep_gives_a_space_that_contains_it(name: str) -> None:
    info = catalog.method(name)
    space = space_of(info)
    assert space.axes
    assert type(space.base) is info.cls
    for text in info.cls.sweep:
        policy = catalog.parse(text)
        for axis in space.axes:
            assert axis.low <= getattr(policy, axis.option) <= axis.high
    ends = [space.policy({axis.option: end for axis in space.axes}) for end in (space.axes[0].mild,)]
    assert catalog.parse(catalog.text(ends[0])) == ends[0]
    assert catalog.parse(catalog.text(space.policy(space.start()))) == space.base


def test_every_n_is_whole_and_goes_beyond_its_sweep() -> None:
    (axis,) = space_of(catalog.method("every_n")).axes
    assert (axis.option, axis.mild, axis.strong, axis.whole) == ("n", 1, 12, True)
    assert space_of(catalog.method("every_n")).policy({"n": 5.0}) == tenuto.EveryN(n=5)


def test_an_axis_may_fall() -> None:
    axis = Axis("keep", 0.8, 0.1, False)
    assert (axis.position(0.8), axis.position(0.1)) == (0.0, 1.0)
    assert axis.value(0.5) == pytest.approx(0.283)
    assert Axis("share", 0.0, 1.0, False).value(0.12345) == 0.123
    assert Axis("n", 1, 12, True).value(0.5) == 3


def fake(search: dict[str, Any] | None = None, sweep: tuple[str, ...] = ()) -> MethodInfo:
    """FastCache's entry with another declaration."""
    space: dict[str, Any] = {"search": search} if search else {}
    cls = type("Fake", (tenuto.FastCache,), {"sweep": sweep, "__slots__": (), **space})
    return MethodInfo("fastcache", "diffusion", cls)


def test_a_declared_search_goes_first() -> None:
    space = space_of(fake({"rtol": (0.02, 0.8), "span": (0, 4)}))
    assert [(axis.option, axis.whole, axis.logarithmic) for axis in space.axes] == [
        ("rtol", False, True),
        ("span", True, False),
    ]
    assert space.policy({"rtol": 0.3, "span": 2.0}) == tenuto.FastCache(rtol=0.3, span=2)
    with pytest.raises(PolicyError, match="declares a search of 'rtl'"):
        space_of(fake({"rtl": (0.1, 0.2)}))


def test_an_end_that_the_class_refuses_is_not_used() -> None:
    space = space_of(fake(sweep=("fastcache:alpha=0.01", "fastcache:alpha=0.3", "fastcache:alpha=0.9")))
    assert [(axis.mild, axis.strong) for axis in space.axes] == [(0.005, 0.9)]
    assert space.start() == {"alpha": 0.3}


def test_no_sweep_is_one_setting(plugin: str) -> None:
    space = space_of(catalog.method("sixth"))
    assert space.axes == ()
    assert catalog.text(space.policy(space.start())) == "sixth"
