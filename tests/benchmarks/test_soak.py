"""A small soak: files and threads are as many at the end as after the first runs, and no run leaves its cache."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(("name", "runs"), [("language", 28), ("images", 34)])
def test_nothing_is_left_behind(name: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    soak = importlib.import_module("soak")
    readings = soak.soak(name, runs)
    first, last = readings[0], readings[-1]
    assert first.runs < last.runs == runs
    assert last.files <= first.files and last.threads <= first.threads
    assert last.tensors <= first.tensors + soak.STEPS  # resident memory is for many runs in a process of their own


def test_what_is_left_behind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    soak = importlib.import_module("soak")
    one = soak.Reading(10, 1_000_000, 6, 2)
    assert soak.flat([one, soak.Reading(20, 1_000_000, 6, 2)])
    assert not soak.flat([one, soak.Reading(20, 1_000_000, 7, 2)])
    assert not soak.flat([one, soak.Reading(20, 1_000_000, 6, 3)])
    assert not soak.flat([one, soak.Reading(20, 2_000_000, 6, 2)])
    assert not soak.flat([one, soak.Reading(20, 1_000_000, 6, 2, tensors=4096)])


def test_a_tensor_that_is_kept_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    soak = importlib.import_module("soak")
    before = soak.reading(1).tensors
    kept = [torch.zeros(3, 5), torch.zeros(7)]
    kept.append(kept[0][1:])  # shares its memory
    assert soak.reading(2).tensors - before == (15 + 7) * 4
