"""The checks of KV records: what the page draws of them, and that records of one folder fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenuto.errors import InputError
from tenuto.records.kv import KVRun, Score
from tenuto.report.kv.scores import KINDS
from tenuto.report.values import (
    Rule,
    count,
    damaged,
    mapping,
    number,
    optional,
    pair,
    problems,
    shares,
    text,
    texts,
    timing_problems,
)

__all__ = ["check_kv", "check_units"]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and count(value)


RULES: list[Rule] = [
    (text, "text", ("policy", "budget", "model", "fingerprint", "device", "command")),
    (lambda v: v is None or text(v), "text or null", ("withheld",)),
    (_whole, "a whole number, 0 or more", ("context",)),
    (count, "a finite number of bytes, 0 or more", ("bytes_held", "bytes_full", "peak_bytes")),
    (mapping, "an object", ("settings", "scores")),
    (texts, "an object of texts", ("versions",)),
    (shares, "[layers][kv_heads] of fractions from 0 to 1", ("heads",)),
    (shares, "[layers][bins] of fractions from 0 to 1", ("survivors",)),
]
SCORE_RULES: list[Rule] = [
    (number, "a finite number", ("value",)),
    (lambda v: v is not None and pair(v), "a pair of rising numbers", ("interval",)),
    (_whole, "a whole number, 0 or more", ("count",)),
    (lambda v: text(v) and v in KINDS, f"one of {', '.join(KINDS)}", ("unit",)),
    (optional, "a finite number or null", ("loss",)),
    (pair, "a pair of rising numbers or null", ("loss_interval",)),
]


def _score_problems(name: str, score: Score) -> list[str]:
    found = problems(score, SCORE_RULES)
    if not found and KINDS[score.unit].better == "higher" and not 0 <= score.value <= 1:
        found = [f"value is '{score.value}', not a fraction from 0 to 1"]
    return [f"{problem} (score of task {name[:40]!r})" for problem in found]


def check_kv(run: KVRun) -> None:
    """Refuse a record that cannot be drawn.

    Raises:
        InputError: a field has a value that is not allowed; the message names policy, field and what is.
    """
    found = problems(run, RULES)
    if mapping(run.scores):
        found += [problem for name, score in run.scores.items() for problem in _score_problems(name, score)]
    found += timing_problems("ttft", run.ttft) + timing_problems("decode", run.decode)
    if found:
        raise damaged(run.policy, found[0])


def check_units(runs: Sequence[KVRun]) -> None:
    """Refuse records that do not fit together.

    Raises:
        InputError: a task has another unit than in another record.
    """
    seen: dict[str, tuple[str, str]] = {}
    for run in runs:
        for name, score in run.scores.items():
            unit, first = seen.setdefault(name, (score.unit, run.policy))
            if unit != score.unit:
                raise InputError(
                    f"Task {name!r} is in {unit} for policy {first!r} and in {score.unit} for {run.policy!r}: they "
                    "were not measured alike. Run the benchmark again or remove one of the files."
                )
