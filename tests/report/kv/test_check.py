from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tenuto.errors import InputError
from tenuto.records.kv import KVRun, Score
from tenuto.records.timing import Timing
from tenuto.report.kv.check import check_kv, check_units


@pytest.mark.parametrize("policy", ["none", "snapkv"])
def test_good_records_pass(kv: Callable[..., KVRun], policy: str) -> None:
    check_kv(kv(policy))
    check_kv(kv(policy, scores={}, ttft=None, decode=None, heads=[], survivors=[], withheld="no"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", 3),
        ("budget", None),
        ("context", 1024.5),
        ("context", True),
        ("withheld", True),
        ("bytes_held", -1),
        ("bytes_full", "8 MiB"),
        ("peak_bytes", float("inf")),
        ("settings", []),
        ("scores", []),
        ("versions", {"torch": 2}),
        ("heads", [[0.5, 1.5]]),
        ("heads", [[0.5], [0.5, 0.5]]),
        ("survivors", [0.5]),
        ("survivors", [[float("nan")]]),
        ("ttft", Timing(seconds=(1.0,), baseline_seconds=())),
        ("decode", Timing(seconds=(0.0,), baseline_seconds=(1.0,))),
    ],
)
def test_what_cannot_be_drawn_is_refused(kv: Callable[..., KVRun], field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"is damaged: {field} is") as error:
        check_kv(kv("snapkv", **{field: value}) if field != "policy" else kv(value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", 1.2),
        ("value", "good"),
        ("value", float("nan")),
        ("interval", (0.9, 0.8)),
        ("interval", None),
        ("count", 1.5),
        ("unit", "bleu"),
        ("unit", []),
        ("loss", "none"),
        ("loss_interval", (1.0,)),
    ],
)
def test_a_damaged_score_names_its_task(
    kv: Callable[..., KVRun], score: Callable[..., Score], field: str, value: Any
) -> None:
    run = kv("snapkv", scores={"vt": replace(score(), **{field: value})})
    with pytest.raises(InputError, match=rf"is damaged: {field} is .*\(score of task 'vt'\)"):
        check_kv(run)


def test_a_task_has_one_unit(kv: Callable[..., KVRun], score: Callable[..., Score]) -> None:
    with pytest.raises(InputError, match="'vt' is in accuracy for policy 'a' and in match for 'b'"):
        check_units([kv("a", scores={"vt": score()}), kv("b", scores={"vt": score(unit="match")})])
