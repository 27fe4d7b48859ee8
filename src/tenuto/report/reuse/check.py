"""The check of a record of a store of prefixes: what the page draws of it."""

from __future__ import annotations

from tenuto.records.reuse import ReuseRun
from tenuto.report.values import Rule, count, damaged, mapping, number, problems, text, texts

__all__ = ["check_reuse"]

ABOVE = (
    "context",
    "bytes_full",
    "recompute_s",
    "restore_s",
    "speedup",
    "speedup_low",
    "speedup_high",
    "perplexity",
    "perplexity_computed",
)
RULES: list[Rule] = [
    (text, "text", ("store", "codec", "model", "fingerprint", "device", "command")),
    (mapping, "an object", ("settings",)),
    (texts, "an object of texts", ("versions",)),
    (lambda value: number(value) and value > 0, "a finite number above 0", ABOVE),
    (count, "a finite number, 0 or more", ("restored", "bytes_stored", "cpu_speedup", "logits_error")),
    (lambda value: isinstance(value, bool), "true or false", ("same_text",)),
]


def check_reuse(run: ReuseRun) -> None:
    """Refuse a record that cannot be drawn.

    Raises:
        InputError: a field has a value that is not allowed; the message names store, field and what is.
    """
    if found := problems(run, RULES):
        raise damaged(run.policy, found[0])
