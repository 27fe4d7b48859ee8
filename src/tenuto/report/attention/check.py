"""The check of a record of a trained attention: what the page draws of it."""

from __future__ import annotations

from typing import Any

from tenuto.records.attention import AttentionRun, Bits, Decode
from tenuto.report.values import Rule, count, damaged, mapping, number, problems, text, texts

__all__ = ["check_attention"]


def _levels(value: Any) -> bool:
    return all(mapping(layer) and all(number(s) and 0 <= s <= 1 for s in layer.values()) for layer in value)


RULES: list[Rule] = [
    (text, "text", ("attention", "model", "fingerprint", "device", "command")),
    (lambda v: isinstance(v, int) and count(v), "a whole number, 0 or more", ("seed", "parameters", "context")),
    (count, "a finite number, 0 or more", ("train_tokens_per_s", "train_tokens_per_cpu_s")),
    (mapping, "an object", ("settings",)),
    (texts, "an object of texts", ("versions",)),
    (_levels, "layers of fractions from 0 to 1", ("usage",)),
]
BITS_RULES: list[Rule] = [
    (lambda v: number(v) and v > 0, "a number above 0", ("context", "value", "last", "bytes")),
]
DECODE_RULES: list[Rule] = [
    (lambda v: number(v) and v > 0, "a number above 0", ("context",)),
    (lambda v: len(v) > 0 and all(number(s) and s > 0 for s in v), "a list of seconds above 0", ("seconds",)),
    (lambda v: mapping(v) and all(map(count, v.values())) and v.get("device", 0) > 0, "bytes by tier", ("held",)),
]


def check_attention(run: AttentionRun) -> None:
    """Refuse a record that cannot be drawn.

    Raises:
        InputError: a field has a value that is not allowed; the message names attention, field and what is.
    """
    parts: list[tuple[AttentionRun | Bits | Decode, list[Rule]]] = [(run, RULES)]
    parts += [(bits, BITS_RULES) for bits in run.bits] + [(decode, DECODE_RULES) for decode in run.decode]
    if found := [problem for record, rules in parts for problem in problems(record, rules)]:
        raise damaged(run.attention, found[0])
