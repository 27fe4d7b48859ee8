"""Which tokens of a prompt should stay by themselves: numbers, names, code, and what only a chat template writes."""

from __future__ import annotations

import re
from typing import Any

import torch

__all__ = ["KINDS", "marks"]

KINDS = {"template": 4.0, "number": 2.0, "code": 1.0, "name": 1.0}
"""How much a token of each kind should stay by itself, beside 0 for all others."""

_NUMBER = re.compile(r"\d")
_CODE = re.compile(r"[_{}()\[\]<>=;\\/|#@$&*^~`]|[a-z][A-Z]")
_NAME = re.compile(r"[A-Z][a-z]+|[A-Z]{2,}")


def marks(tokenizer: Any, ids: torch.Tensor) -> torch.Tensor:
    """How much each of the tokens ``[tokens]`` should stay by itself, float32; zeros without a tokenizer.

    A capital letter makes a name only where no sentence begins: after a token that ends neither sentence nor line.
    """
    told = torch.zeros(ids.shape[0])
    if tokenizer is None:
        return told
    special = set(tokenizer.all_special_ids)
    numbers = ids.tolist()
    known = {number: _kind(str(tokenizer.decode([number])), number in special) for number in set(numbers)}
    begins = True
    for at, number in enumerate(numbers):
        kind, text = known[number]
        if kind and not (kind == "name" and begins):
            told[at] = KINDS[kind]
        if text.strip() or "\n" in text:
            begins = kind == "template" or text.rstrip(" ").endswith((".", "!", "?", "\n", ":"))
    return told


def _kind(text: str, special: bool) -> tuple[str, str]:
    if special:
        return "template", text
    if _NUMBER.search(text):
        return "number", text
    if _CODE.search(text):
        return "code", text
    return ("name" if _NAME.match(text.strip()) else ""), text
