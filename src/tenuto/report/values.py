"""What a field of a record may hold, and the error where it holds something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tenuto.errors import InputError
from tenuto.records.timing import Timing

__all__ = [
    "Rule",
    "count",
    "damaged",
    "mapping",
    "number",
    "optional",
    "pair",
    "problems",
    "rectangle",
    "shares",
    "text",
    "texts",
    "timing_problems",
]

Rule = tuple[Callable[[Any], bool], str, tuple[str, ...]]
"""What is allowed, the same in words, and the fields it is about."""


def number(value: Any) -> bool:
    """A finite number that a page can draw."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def optional(value: Any) -> bool:
    """A number or None."""
    return value is None or number(value)


def count(value: Any) -> bool:
    """A number, 0 or more."""
    return number(value) and value >= 0


def pair(value: Any) -> bool:
    """Two rising numbers, or None."""
    return value is None or (len(value) == 2 and all(map(number, value)) and value[0] <= value[1])


def text(value: Any) -> bool:
    """Text."""
    return isinstance(value, str)


def mapping(value: Any) -> bool:
    """An object with named values."""
    return isinstance(value, dict)


def texts(value: Any) -> bool:
    """An object of texts."""
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def rectangle(value: Any, cell: Callable[[Any], bool]) -> bool:
    """Rows of equal length, every item of which is a ``cell``."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return False
    return len({len(row) for row in value}) <= 1 and all(cell(item) for row in value for item in row)


def shares(value: Any) -> bool:
    """A rectangle of fractions from 0 to 1."""
    return rectangle(value, lambda item: number(item) and 0 <= item <= 1)


def problems(record: Any, rules: Sequence[Rule]) -> list[str]:
    """What is wrong with the fields of a record or of a part of it, in words."""
    return [
        f"{name} is {str(value)[:60]!r}, not {allowed}"
        for good, allowed, names in rules
        for name in names
        if not good(value := getattr(record, name))
    ]


def timing_problems(name: str, timing: Timing | None) -> list[str]:
    """What is wrong with repeated measurements, in words."""
    if timing is None:
        return []
    mine, theirs = timing.seconds, timing.baseline_seconds
    good = len(mine) == len(theirs) > 0 and all(number(s) and s > 0 for s in (*mine, *theirs))
    return [] if good else [f"{name} is not two equally long lists of seconds above 0"]


def damaged(policy: Any, problem: str) -> InputError:
    """The error about a record that cannot be drawn."""
    return InputError(
        f"The record of policy {str(policy)[:80]!r} is damaged: {problem}. Run the benchmark again or remove the file."
    )
