"""Totals from hand-made events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tenuto.telemetry import Event, Telemetry


def event(step: int, decision: Any, first: int = 0, last: int = 3, **rest: Any) -> Event:
    given = {"generation": 0, "branch": "cond", **rest}
    return Event(step=step, first_block=first, last_block=last, decision=decision, **given)


@pytest.fixture
def telemetry() -> Telemetry:
    found = Telemetry()
    for item in (
        event(0, "compute"),
        event(1, "compute", last=0),
        event(1, "reuse", first=1, branch="cond", statistic=0.1, critical=0.2),
        event(2, "forecast", generation=1),
        event(2, "compute", generation=0),
    ):
        found.record(item)
    return found


def test_a_span_counts_its_blocks(telemetry: Telemetry) -> None:
    assert telemetry.counts() == {"compute": 4 + 1 + 4, "reuse": 3, "forecast": 4, "correct": 0}
    assert telemetry.reuse_ratio == pytest.approx(7 / 16)


def test_the_grid_is_the_fraction_not_computed(telemetry: Telemetry) -> None:
    assert telemetry.grid() == [[0, 0, 0, 0], [0, 1, 1, 1], [0.5] * 4]


def test_the_decisions_are_those_of_the_first_generation_and_branch(telemetry: Telemetry) -> None:
    assert telemetry.decisions() == [["compute"] * 4, ["compute", "reuse", "reuse", "reuse"], ["compute"] * 4]


def test_operations() -> None:
    telemetry = Telemetry(flops=40.0, full_flops=100.0)
    assert telemetry.flops_speedup == 2.5
    assert Telemetry().flops_speedup is None


def test_bytes_held_and_the_most_ever_held() -> None:
    telemetry = Telemetry()
    for delta in (100, 50, -120, 60, -90):
        telemetry.hold(delta)
    assert (telemetry.cache_bytes, telemetry.peak_cache_bytes) == (0, 150)


def test_nothing_happened() -> None:
    empty = Telemetry()
    assert (empty.reuse_ratio, empty.grid(), empty.decisions(), empty.records()) == (0, [], [], [])
    assert empty.summary()["generations"] == 0


def test_the_summary_and_the_records_are_json(telemetry: Telemetry) -> None:
    summary = json.loads(json.dumps(telemetry.summary()))
    assert (summary["reuse"], summary["generations"], summary["flops_speedup"]) == (3, 2, None)
    records = json.loads(json.dumps(telemetry.records()))
    assert [record["step"] for record in records] == [0, 1, 1, 2, 2]
    assert (records[2]["statistic"], records[0]["statistic"]) == (0.1, None)
