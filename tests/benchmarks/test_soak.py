"""A small soak: files and threads are as many at the end as after the first runs, and no run leaves its cache."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
KEPT = 34_560
"""Bytes a run: half of what the cache of a language run holds, 45 entries of 6 heads with 2 x 32 float32 each. The C
library's allocator takes and gives back its pages unevenly, so that less cannot be seen in few runs."""


@pytest.mark.parametrize(("name", "runs"), [("language", 28), ("images", 34)])
def test_nothing_is_left_behind(name: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    soak = importlib.import_module("soak")
    readings = soak.soak(name, runs)
    first, last = readings[0], readings[-1]
    assert first.runs < last.runs == runs
    assert last.files <= first.files and last.threads <= first.threads
    assert soak.growth(readings) < KEPT


def test_what_is_left_behind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    soak = importlib.import_module("soak")
    one = soak.Reading(10, 1_000_000, 6, 2)
    assert soak.flat([one, soak.Reading(20, 1_000_000, 6, 2)])
    assert not soak.flat([one, soak.Reading(20, 1_000_000, 7, 2)])
    assert not soak.flat([one, soak.Reading(20, 1_000_000, 6, 3)])
    assert not soak.flat([one, soak.Reading(20, 2_000_000, 6, 2)])
