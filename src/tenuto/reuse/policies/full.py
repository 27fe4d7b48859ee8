"""FullRecompute: forget that the chunks were ever computed, and run all of them as one prompt. The baseline: exact.

What it does not do: save anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenuto.reuse.policy import Assembler, Seen

__all__ = ["FullRecompute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRecompute(Assembler):
    """Every token in every layer."""

    baseline: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    reads: ClassVar[bool] = False

    def choose(self, seen: Seen) -> None:
        return None
