"""The check of a record of a sharded cache: what the page draws of it."""

from __future__ import annotations

from typing import Any

from tenuto.records.shards import ShardsRun
from tenuto.report.values import Rule, count, damaged, mapping, problems, text, texts

__all__ = ["check_shards"]


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(count(size) for size in value)


def _above(value: Any) -> bool:
    return count(value) and value > 0


WORDS = ("placement", "selector", "codec", "schedule", "model", "fingerprint", "device", "command")
COUNTS = (
    "bytes_full",
    "kl",
    "logit_gap",
    "logit_largest",
    "same",
    "collectives",
    "steps",
    "tokens_read",
    "tokens_held",
    "pages_read",
    "pages_held",
    "pages_fetched",
    "tokens_deleted",
    "balance",
    "stall_s",
)
RULES: list[Rule] = [
    (text, "text", WORDS),
    (mapping, "an object", ("settings",)),
    (texts, "an object of texts", ("versions",)),
    (_above, "a finite number above 0", ("perplexity", "own", "tokens_per_s", "own_tokens_per_s")),
    (count, "a finite number, 0 or more", COUNTS),
    (lambda value: value is None or count(value), "a finite number, 0 or more, or null", ("dropped",)),
    (lambda value: bool(_sizes(value) and value), "a list of bytes", ("bytes_held",)),
    (_sizes, "a list of bytes", ("bytes_below", "bytes_sent")),
]


def check_shards(run: ShardsRun) -> None:
    """Refuse a record that cannot be drawn.

    Raises:
        InputError: a field has a value that is not allowed; the message names policy, field and what is.
    """
    if found := problems(run, RULES):
        raise damaged(run.policy, found[0])
