from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tenuto.records.kv import KVRun, Score
from tenuto.records.timing import Timing
from tenuto.report.kv.facts import kv_headlines
from tenuto.report.kv.table import kv_rows


def test_headlines(kv: Callable[..., KVRun], score: Callable[..., Score]) -> None:
    chance = {"vt": score(loss_interval=(-0.01, 0.1))}
    slow, fast = (Timing(seconds=(1.0,) * 3, baseline_seconds=(0.5 * f,) * 3) for f in (1.0, 5.0))
    runs = [
        kv("none", scores={"vt": score(loss=None)}),
        kv("worse", bytes_held=1, scores={"vt": score()}, decode=slow),
        kv("good", bytes_held=3 * 2**20, scores=chance, decode=slow),
        kv("large", bytes_held=4 * 2**20, scores=chance, decode=fast),
        kv("unpaired", bytes_held=1, scores={"vt": score(loss=None)}, decode=None),
        kv("unscored", bytes_held=1, scores={}, decode=None),
        kv("held", bytes_held=1, scores=chance, withheld="does not work", budget="keep=0.5"),
    ]
    policies, fewest, decode = kv_headlines(kv_rows(runs))
    assert (policies.value, policies.note) == ("6", "2 budgets, 1 context; 1 of them withheld")
    assert (fewest.policy, fewest.value) == ("good, keep=0.25", "37.5\u00a0%")
    assert fewest.note.startswith("3.0\u00a0MiB of 8.0\u00a0MiB, 1,024\u00a0tokens of context")
    assert (decode.policy, decode.value) == ("large, keep=0.25", "2.50×")


def test_where_every_policy_loses_the_page_says_so(kv: Callable[..., KVRun]) -> None:
    runs = [kv("none"), replace(kv("snapkv"), decode=None)]
    _, none = kv_headlines(kv_rows(runs))
    assert (none.value, none.policy) == ("none", "")


def test_without_a_baseline_the_page_says_so(kv: Callable[..., KVRun]) -> None:
    assert "without a baseline Run ('none')" in kv_headlines(kv_rows([kv("snapkv")]))[0].note
