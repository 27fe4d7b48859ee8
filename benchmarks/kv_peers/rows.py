"""Which methods are compared: kvpress's presses with the same method of ours, numbers set equal, and what else runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["COMPOSITIONS", "METHODS", "REPEAT", "Row", "rows"]

Side = Literal["kvpress", "tenuto", "transformers"]
Budget = Literal["keep", "bytes", "none"]

METHODS = {
    "knorm": "knorm",
    "snapkv": "snapkv:window=64,kernel=5",
    "streaming_llm": "streaming_llm:sinks=4,contiguous=false",
    "expected_attention": "expected_attention:future=512,epsilon=0,sinks=4",
    "pyramidkv": "pyramidkv:window=64,kernel=5,beta=20",
    "adakv_expected_attention": "expected_attention:future=512,epsilon=0.01,sinks=4+adakv:safeguard=0.2,minimum=true",
    "adakv_snapkv": "snapkv:window=64,kernel=5+adakv:safeguard=0.2,minimum=true",
    "kvzip": "kvzip:chunk=2048,sinks=4,instruction={repeat}",
    "think": "think:keep=0.5,window=32",
}
"""Name in kvpress -> the same of ours. ThinK keeps all tokens, and half of the key channels whatever ``keep`` is."""
COMPOSITIONS = (
    "kvzip:chunk=2048,sinks=4,instruction={repeat}+kivi:bits=4",
    "kvzip:chunk=2048,sinks=4,instruction={repeat}+kivi:bits=2",
    "expected_attention+adakv+kivi:bits=4",
    "expected_attention+adakv+kivi:bits=2",
)
"""Ours alone, each within the bytes that ``keep`` of the tokens would take whole."""
REPEAT = "\n\nRepeat the previous context exactly.\n"
"""What kvpress's KVzip puts before the repetition where there is no chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One library's cache.

    Attributes:
        method: what it is compared under; side: whose it is; text: how that side names it.
        budget: "keep", a fraction of the tokens; "bytes", the bytes of that fraction; "none": all tokens stay.
    """

    method: str
    side: Side
    text: str
    budget: Budget


def rows(caches: Iterable[str], compositions: Iterable[str], repeat: str) -> list[Row]:
    """All rows, the two of one method side by side; ``repeat`` is :data:`REPEAT` as token ids."""
    found = [Row(method=name, side="transformers", text=name, budget="none") for name in caches]
    for name, text in METHODS.items():
        budget: Budget = "none" if name == "think" else "keep"
        found.append(Row(method=name, side="kvpress", text=name, budget=budget))
        found.append(Row(method=name, side="tenuto", text=text.format(repeat=repeat), budget=budget))
    for text in compositions:
        name = text.replace(",instruction={repeat}", "")
        found.append(Row(method=name, side="tenuto", text=text.format(repeat=repeat), budget="bytes"))
    return found
