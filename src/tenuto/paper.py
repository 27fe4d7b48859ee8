"""Where a method comes from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Paper"]


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from; ``tenuto cite`` prints it."""

    title: str
    authors: str
    year: int
    url: str
