"""The checks of prompt records: what the page draws of them."""

from __future__ import annotations

from typing import Any

from tenuto.records.prompt import PromptRun
from tenuto.report.values import Rule, count, damaged, mapping, number, pair, problems, text, texts

__all__ = ["check_prompt"]


def _share(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


def _whole(value: Any) -> bool:
    return isinstance(value, int) and count(value)


RULES: list[Rule] = [
    (text, "text", ("kind", "way", "method", "model", "fingerprint", "device", "command")),
    (_share, "a fraction from 0 to 1", ("ratio", "held", "right", "answered")),
    (_whole, "a whole number, 0 or more", ("context", "examples")),
    (count, "a finite number, 0 or more", ("size", "loss", "seconds", "speedup")),
    (number, "a finite number", ("extra", "behind")),
    (pair, "a pair of rising numbers or null", ("extra_interval", "behind_interval")),
    (mapping, "an object", ("settings",)),
    (texts, "an object of texts", ("versions",)),
]


def check_prompt(run: PromptRun) -> None:
    """Refuse a record that cannot be drawn.

    Raises:
        InputError: a field has a value that is not allowed; the message names way, field and what is.
    """
    if found := problems(run, RULES):
        raise damaged(run.way, found[0])
