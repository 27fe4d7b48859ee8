"""Clock: which guidance branch a call belongs to, and when a generation begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenuto.diffusion.clock import Clock, Tick


def ticks(*timesteps: Any, context: str | None = None, session: str = "", clock: Clock | None = None) -> list[Tick]:
    clock = clock or Clock()
    return [clock.tick(session, context, timestep) for timestep in timesteps]


def fresh(*timesteps: Any, context: str | None = None) -> list[bool]:
    return [tick.fresh for tick in ticks(*timesteps, context=context)]


def test_a_turn_begins_a_generation() -> None:
    assert fresh(900, 600, 300, 900, 600, 300) == [True, False, False, True, False, False]


def test_ascending_timesteps_are_a_generation_too() -> None:
    assert fresh(0.0, 0.3, 0.6, 0.0, 0.3, 0.6) == [True, True, False, True, True, False]
    told = Clock()
    told.reset("", announced=True)
    found = [tick.fresh for tick in ticks(0.0, 0.3, 0.6, 0.0, 0.3, clock=told)]
    assert found == [True, False, False, True, True], "the second one was not announced"
    assert [tick.fresh for tick in ticks(0.0, 0.3, 0.6, clock=Clock(usual=1))] == [True, False, False]


def test_a_generation_of_one_step_is_over_when_timesteps_rise() -> None:
    assert fresh(0, 999, 500, 0, 999) == [True, True, False, False, True]


def test_the_direction_may_change_from_one_generation_to_the_next() -> None:
    assert fresh(900, 600, 300, 400, 500, 600, 450) == [True, False, False, True, True, False, True]


def test_two_steps_are_enough_to_see_the_turn() -> None:
    assert fresh(900, 100, 900, 100) == [True, False, True, False]


def test_a_repeat_inside_a_context_begins_a_generation() -> None:
    assert fresh(500, 500, 400, context="cond") == [True, True, False]


def test_calls_at_one_timestep_are_branches() -> None:
    found = ticks(900, 900, 600, 600, 900, 900)
    assert [tick.branch for tick in found] == ["call0", "call1"] * 3
    assert [tick.fresh for tick in found] == [True, True, False, False, True, True]


def test_more_calls_than_can_be_told_apart_are_all_cold_and_say_so_once() -> None:
    with pytest.warns(UserWarning, match="nothing is reused from here on") as warned:
        found = ticks(*[500] * 6, *[400] * 6)
    assert len(warned) == 1
    assert [tick.branch for tick in found[:5]] == ["call0", "call1", "call2", "call3", "call0"]
    assert all(tick.fresh for tick in found)


def test_named_contexts() -> None:
    clock = Clock()
    for step, timestep in enumerate((900, 600)):
        for name, branch in (("cond", "cond"), ("uncond", "uncond"), ("cond_uncond", "both")):
            assert clock.tick("", name, timestep) == Tick(branch, float(timestep), step == 0)


def test_sessions_are_apart() -> None:
    clock = Clock()
    ticks(900, 600, clock=clock, session="a")
    assert ticks(900, clock=clock, session="b") == [Tick("call0", 900.0, True)]
    assert ticks(300, clock=clock, session="a") == [Tick("call0", 300.0, False)]


def test_reset_of_one_session_and_of_all() -> None:
    clock = Clock()
    for session in ("a", "b"):
        ticks(900, 600, clock=clock, session=session)
    clock.reset("a")
    assert ticks(300, clock=clock, session="a")[0].fresh
    assert not ticks(300, clock=clock, session="b")[0].fresh
    clock.reset()
    assert ticks(100, clock=clock, session="a")[0].fresh and ticks(100, clock=clock, session="b")[0].fresh


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (torch.tensor(7), 7.0),
        (torch.tensor([3, 9]), 9.0),
        (torch.tensor([[0.25, 0.0], [0.25, 0.5]]), 0.5),
        (torch.tensor([0.5], dtype=torch.bfloat16), 0.5),
        (12, 12.0),
        (None, 0.0),
    ],
)
def test_what_a_timestep_may_be(given: Any, read: float) -> None:
    assert ticks(given)[0].timestep == read
