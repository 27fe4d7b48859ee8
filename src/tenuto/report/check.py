"""A record may have been edited or damaged: every value the page draws is checked before the page is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tenuto.errors import InputError
from tenuto.eval.run import Run

__all__ = ["DECISIONS", "check_run"]

DECISIONS = ("compute", "reuse", "forecast", "correct")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _optional(value: Any) -> bool:
    return value is None or _number(value)


def _count(value: Any) -> bool:
    return _number(value) and value >= 0


def _pair(value: Any) -> bool:
    return value is None or (len(value) == 2 and all(map(_number, value)) and value[0] <= value[1])


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _rectangle(value: Any, cell: Callable[[Any], bool]) -> bool:
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return False
    return len({len(row) for row in value}) <= 1 and all(cell(item) for row in value for item in row)


def _grid(value: Any) -> bool:
    return _rectangle(value, lambda item: _number(item) and 0 <= item <= 1)


def _shadow(value: Any) -> bool:
    if value == {}:
        return True
    numbers = ("estimates", "worst", "mean", "output_error", "output_bound")
    good = isinstance(value, dict) and all(_count(value.get(key)) for key in numbers)
    return good and _optional(value.get("rtol")) and value.get("kept") in (True, False, None)


def _decisions(value: Any) -> bool:
    return _rectangle(value, lambda item: item in DECISIONS)


RULES: list[tuple[Callable[[Any], bool], str, tuple[str, ...]]] = [
    (_text, "text", ("policy", "task", "model", "fingerprint", "device", "command")),
    (lambda v: v is None or _text(v), "text or null", ("withheld",)),
    (_optional, "a finite number or null", ("speedup", "flops_speedup", "psnr", "ssim", "fid", "class_accuracy")),
    (lambda v: v is None or _count(v), "a number of bytes or null", ("peak_bytes",)),
    (_count, "a finite number, 0 or more", ("reuse_ratio", "cache_bytes", "calibration_seconds")),
    (_pair, "a pair of rising numbers or null", ("speedup_range", "psnr_interval")),
    (_mapping, "an object", ("settings", "telemetry")),
    (_shadow, "an object of estimates, worst, mean, rtol, kept, output_error, output_bound", ("shadow",)),
    (_texts, "an object of texts", ("versions", "images")),
    (_grid, "[steps][blocks] of fractions from 0 to 1", ("grid",)),
    (_decisions, f"[steps][blocks] of {', '.join(DECISIONS)}", ("decisions",)),
]


def _timing_problem(run: Run) -> str | None:
    if run.timing is None:
        return None
    mine, theirs = run.timing.seconds, run.timing.baseline_seconds
    good = len(mine) == len(theirs) > 0 and all(_number(s) and s > 0 for s in (*mine, *theirs))
    return None if good else "timing is not two equally long lists of seconds above 0"


def check_run(run: Run) -> None:
    """Refuse a record that cannot be drawn.

    Raises:
        InputError: a field has a value of the wrong kind; the message names policy, field and what is allowed.
    """
    problem = _timing_problem(run)
    for good, allowed, names in RULES:
        for name in names:
            value = getattr(run, name)
            if not good(value):
                problem = f"{name} is {str(value)[:60]!r}, not {allowed}"
    if problem:
        raise InputError(
            f"The record of policy {str(run.policy)[:80]!r} is damaged: {problem}. "
            "Run the benchmark again or remove the file."
        )
