"""Timing: repeated measurements of a method and of what it is held against."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Repeated measurements in seconds, interleaved with the baseline's."""

    seconds: tuple[float, ...]
    baseline_seconds: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Baseline over method, pair by pair."""
        return tuple(b / s for s, b in zip(self.seconds, self.baseline_seconds, strict=True))
