"""A record may have been edited or damaged: every value the page draws is checked before the page is made."""

from __future__ import annotations

from typing import Any

from tenuto.records.diffusion import Run
from tenuto.report.values import (
    Rule,
    count,
    damaged,
    mapping,
    optional,
    pair,
    problems,
    rectangle,
    shares,
    text,
    texts,
    timing_problems,
)

__all__ = ["DECISIONS", "check_diffusion"]

DECISIONS = ("compute", "reuse", "forecast", "correct")


def _shadow(value: Any) -> bool:
    if value == {}:
        return True
    numbers = ("estimates", "worst", "mean", "output_error", "output_bound")
    good = isinstance(value, dict) and {"rtol", "kept"} <= set(value) and all(count(value.get(key)) for key in numbers)
    return good and optional(value["rtol"]) and value["kept"] in (True, False, None)


def _decisions(value: Any) -> bool:
    return rectangle(value, lambda item: item in DECISIONS)


RULES: list[Rule] = [
    (text, "text", ("policy", "model", "fingerprint", "device", "command")),
    (lambda v: v is None or text(v), "text or null", ("withheld",)),
    (
        optional,
        "a finite number or null",
        ("speedup", "flops_speedup", "psnr", "ssim", "fid", "class_accuracy", "motion_error"),
    ),
    (lambda v: isinstance(v, list) and all(map(count, v)), "a list of finite numbers, 0 or more", ("frame_psnr",)),
    (lambda v: v is None or count(v), "a number of bytes or null", ("peak_bytes",)),
    (count, "a finite number, 0 or more", ("reuse_ratio", "cache_bytes", "calibration_seconds")),
    (pair, "a pair of rising numbers or null", ("speedup_range", "psnr_interval")),
    (mapping, "an object", ("settings", "telemetry")),
    (_shadow, "an object of estimates, worst, mean, rtol, kept, output_error, output_bound", ("shadow",)),
    (texts, "an object of texts", ("versions", "images")),
    (shares, "[steps][blocks] of fractions from 0 to 1", ("grid",)),
    (_decisions, f"[steps][blocks] of {', '.join(DECISIONS)}", ("decisions",)),
]


def check_diffusion(run: Run) -> None:
    """Refuse a record that cannot be drawn.

    Raises:
        InputError: a field has a value of the wrong kind; the message names policy, field and what is allowed.
    """
    if found := timing_problems("timing", run.timing) + problems(run, RULES):
        raise damaged(run.policy, found[-1])
