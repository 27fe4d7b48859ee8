"""Time and memory are measured in turns, after a warm-up, and only what was measured is claimed."""

from __future__ import annotations

import time

import pytest
import torch

from tenuto.errors import InputError
from tenuto.measure.speed import PeakMemory, claim, interleave, timed
from tenuto.records.timing import Timing

CPU = torch.device("cpu")
PAIRS = Timing(seconds=(1.0, 1.0, 2.0), baseline_seconds=(2.0, 3.0, 2.0))


def test_turns_rotate_and_warm_ups_do_not_count() -> None:
    calls: list[tuple[str, int]] = []

    def work(name: str, seconds: float):
        def run(repeat: int) -> float:
            calls.append((name, repeat))
            return seconds + repeat

        return run

    found = interleave(work("base", 10.0), {"a": work("a", 5.0), "b": work("b", 2.0)}, repeats=3, warmup=2)
    assert found["a"] == Timing(seconds=(5.0, 6.0, 7.0), baseline_seconds=(10.0, 11.0, 12.0))
    assert found["b"].seconds == (2.0, 3.0, 4.0)
    assert [repeat for _, repeat in calls] == [r for r in range(-2, 3) for _ in range(3)]
    assert [name for name, repeat in calls if repeat >= 0] == ["base", "a", "b", "a", "b", "base", "b", "base", "a"]


@pytest.mark.parametrize("numbers", [{"repeats": 0}, {"warmup": -1}])
def test_no_repeats_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least one repeat"):
        interleave(lambda _: 1.0, {}, **numbers)


def test_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += 2.5

    assert timed(work, CPU) == 2.5


def test_claim_is_the_median_with_its_range() -> None:
    found = claim(PAIRS, saved=True, identical=False, exact=False)
    assert (found.speedup, found.speedup_range, found.withheld) == (2.0, (1.0, 3.0), None)
    assert claim(PAIRS, saved=True, identical=True, exact=True).speedup == 2.0


@pytest.mark.parametrize(
    ("saved", "identical", "exact", "reason"),
    [
        (False, True, True, "nothing was reused"),
        (False, False, False, "nothing was reused"),
        (True, True, False, "equals the uncached one"),
    ],
)
def test_claims_that_are_withheld(saved: bool, identical: bool, exact: bool, reason: str) -> None:
    found = claim(PAIRS, saved=saved, identical=identical, exact=exact)
    assert found.speedup is None
    assert found.speedup_range is None
    assert reason in (found.withheld or "")


def test_peak_memory_sees_what_is_gone_again() -> None:
    size = 96 * 2**20
    with PeakMemory(CPU) as memory:
        held = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.05)
        del held
    assert 0.9 * size < memory.grown < 1.5 * size
    with PeakMemory(CPU) as nothing:
        time.sleep(0.01)
    assert nothing.grown < 0.2 * size
