"""The interval of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import t as student

__all__ = ["mean_interval"]


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % Student t interval of the mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = float(student.ppf(0.975, n - 1)) * math.sqrt(variance / n)
    return mean - half, mean + half
