"""Target: what the user asks for, and by how much a setting meets it, with allowance for other seeds and other minutes.

A search that stops exactly at the target on its own seeds misses it on others half of the time. So quality is judged by
the lower 95 % prediction bound of the mean over as many other pictures, ``mean - t * sd * sqrt(2 / n)``; speed by what
the operations and the measured overhead predict, less ``ALLOWANCE``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student

from tenuto.bench.diffusion.tuning import TrialOutcome
from tenuto.errors import InputError, closest
from tenuto.records.diffusion import Run

__all__ = ["METRICS", "Target", "lower_bound", "predicted_speedup"]

CONFIDENCE = 0.95
ALLOWANCE = {"speedup": 1.05, "flops_speedup": 1.02}
"""Wall clock varies from minute to minute, and what an adaptive policy computes from seed to seed."""

METRICS = {
    "psnr": (0.0, 100.0, "dB against the uncached pictures, for example psnr>=30"),
    "ssim": (0.0, 1.0, "against the uncached pictures, for example ssim>=0.98"),
    "speedup": (1.0, 1000.0, "times as fast as uncached, for example speedup>=2"),
    "flops_speedup": (1.0, 1000.0, "times fewer operations, for example flops_speedup>=2"),
}


def lower_bound(values: Sequence[float]) -> float:
    """One-sided 95 % prediction bound of the mean of as many further values; two values at least."""
    n = len(values)
    return fmean(values) - float(student.ppf(CONFIDENCE, n - 1)) * stdev(values) * math.sqrt(2 / n)


def predicted_speedup(outcome: TrialOutcome, overhead: float) -> float:
    """Wall-clock speed-up if, beside the operations, ``overhead`` of the uncached time is spent; 1 if none are saved.

    The overhead is pooled over a policy's settings: operations are counted without noise, a single timing is not.
    """
    return 1 / max(1 / outcome.flops_speedup + overhead, 1e-3) if outcome.flops_speedup else 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A metric and the least it must be."""

    metric: str
    least: float

    @classmethod
    def parse(cls, given: str) -> Target:
        """From a text such as ``psnr>=30``.

        Raises:
            InputError: it is malformed, the metric is unknown, or the number is out of the metric's range.
        """
        parts = re.fullmatch(r"\s*([^<>=\s]+)\s*>=\s*(\S+)\s*", given)
        if not parts:
            raise InputError(f"target {given!r} is malformed. Write METRIC>=NUMBER, for example 'psnr>=30'.")
        metric = parts[1]
        if metric not in METRICS:
            raise InputError(f"Unknown metric {metric!r} in the target.{closest(metric, METRICS)}")
        low, high, words = METRICS[metric]
        try:
            least = float(parts[2])
        except ValueError as error:
            raise InputError(f"target {given!r} has no number: {parts[2]!r}. Write {words}.") from error
        if not low < least < high:
            raise InputError(f"target {given!r} is not allowed: {metric} lies between {low:g} and {high:g} ({words}).")
        return cls(metric, least)

    def __str__(self) -> str:
        return f"{self.metric}>={self.least:g}"

    @property
    def is_speed(self) -> bool:
        """Whether a stronger setting comes nearer to it."""
        return self.metric in ALLOWANCE

    def margin(self, outcome: TrialOutcome, speedup: float) -> float:
        """By how much a setting meets the target; negative if it does not. ``speedup`` is the predicted one.

        Raises:
            InputError: SSIM of pictures that are too small for it.
        """
        if self.is_speed:
            value = speedup if self.metric == "speedup" else outcome.flops_speedup or 1.0
            return math.log(value / (self.least * ALLOWANCE[self.metric]))
        values = outcome.psnr if self.metric == "psnr" else outcome.ssim
        if not values:
            raise InputError("The pictures of this model are too small for SSIM. Give a target for psnr or speedup.")
        return lower_bound(values) - self.least

    def gain(self, outcome: TrialOutcome, speedup: float) -> float:
        """What is worth having among settings that meet the target: quality if it is about speed, else speed."""
        return fmean(outcome.psnr) if self.is_speed else math.log(speedup)

    def measured(self, run: Run) -> float | None:
        """The metric in a record; None where it is withheld."""
        value: float | None = {
            "psnr": run.psnr,
            "ssim": run.ssim,
            "speedup": run.speedup,
            "flops_speedup": run.flops_speedup,
        }[self.metric]
        return None if run.withheld else value

    def met(self, run: Run) -> bool:
        """Whether a record meets it."""
        value = self.measured(run)
        return value is not None and value >= self.least
