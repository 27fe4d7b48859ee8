"""Means, paired losses and their signs, from outcomes made by hand."""

from __future__ import annotations

import math

import pytest

import tenuto
from tenuto.bench.kv.scores import Outcome, summarise
from tenuto.bench.reading import CacheEntry, CacheSize
from tenuto.budget import MemoryBudget
from tenuto.records.kv import KVRun

SHARED = KVRun(policy="", budget="", context=0, model="m", fingerprint="f", settings={}, versions={}, device="d")
ENTRIES = [CacheEntry(), CacheEntry(policy=tenuto.Knorm(), budget=MemoryBudget.keep(0.5))]


def outcome(score: dict[str, float], held: int = 100, seconds: float = 1.0) -> Outcome:
    kept = CacheSize(bytes_held=held, bytes_full=100, peak_bytes=held + 1, heads=[[held / 100]], survivors=[[1.0, 0.0]])
    return Outcome(seconds=seconds, decode_seconds=seconds / 10, held=kept, scores=score)


def test_an_outcome_round_trips() -> None:
    one = outcome({"passkey": 1.0})
    assert Outcome.read(one.told()) == one


def test_summary() -> None:
    found = {
        (8, "passkey", 0): [outcome({"passkey": 1.0}), outcome({"passkey": 0.0}, 40, 2.0)],
        (8, "passkey", 1): [outcome({"passkey": 1.0}), outcome({"passkey": 1.0}, 60, 3.0)],
        (8, "perplexity", 0): [outcome({"perplexity": 2.0}), outcome({"perplexity": 2.5}, 50, 2.0)],
        (16, "passkey", 0): [outcome({"passkey": 0.0}), outcome({"passkey": 0.0})],
    }
    base, run = summarise(SHARED, ENTRIES, 8, found)
    assert (base.policy, base.budget, run.policy, run.budget) == ("none", "full", "knorm", "keep=0.5")
    assert (run.bytes_held, run.bytes_full, run.peak_bytes) == (50, 100, 61)
    assert run.ttft is not None
    assert run.ttft.ratios == pytest.approx((1 / 2, 1 / 3, 1 / 2))
    score = run.scores["passkey"]
    assert (score.value, score.count, score.unit, score.loss) == (0.5, 2, "accuracy", 0.5)
    assert score.loss_interval is not None
    assert score.loss_interval[0] < 0.5 < score.loss_interval[1]
    likely = run.scores["perplexity"]
    assert likely.value == pytest.approx(math.exp(2.5))
    assert likely.loss == 0.5
    assert base.scores["perplexity"].loss is None
    assert run.heads == [[0.5]]
    assert run.survivors == [[1.0, 0.0]]


def test_intervals_of_shares_stay_shares() -> None:
    found = {(8, "a", i): [outcome({"a": 1.0, "agreement": 0.5 + i / 2})] * 2 for i in range(2)}
    run = summarise(SHARED, ENTRIES, 8, found)[1]
    low, high = run.scores["a"].interval
    assert (round(low, 3), high) == (0.342, 1.0)  # Wilson, two of two
    assert run.scores["agreement"].interval == (0.0, 1.0)
    assert run.scores["agreement"].unit == "match"
