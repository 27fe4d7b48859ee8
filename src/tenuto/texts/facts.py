"""Facts about things, stated in running text and asked for later: recall by distance, in tokens, not in words.

A fact is one line, ``Note: the silver owl is river.``; its value is one token, so that one forward pass ranks the right
value among all candidates, for every question of a row. In the manner of RULER's multi-key retrieval (Hsieh et al.,
COLM 2024, https://arxiv.org/abs/2404.06654) and of associative recall (Arora et al., ICLR 2024,
https://arxiv.org/abs/2312.04927).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenuto.errors import InputError
from tenuto.texts.haystack import draw_keys

__all__ = ["Fact", "Facts"]

MOST = 26
"""Facts of a row, at most: so many keys there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Token ids of a line up to its value, of the value, and of what ends the line."""

    asked: tuple[int, ...]
    value: int
    end: tuple[int, ...]

    @property
    def line(self) -> list[int]:
        """All of it."""
        return [*self.asked, self.value, *self.end]


class Facts:
    """Draws facts for one tokenizer.

    Attributes:
        values: the token ids a value can be, sorted: plain words with a space before them.

    Raises:
        InputError: the tokenizer has fewer than two such words.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        words = tokenizer.get_vocab().items()
        self.values: tuple[int, ...] = tuple(sorted(i for word, i in words if re.fullmatch(r"Ġ[a-z]{4,}", word)))
        if len(self.values) < 2:
            raise InputError("This tokenizer has no whole words to ask for. Train it on more text or with more pieces.")
        self._end = tuple(tokenizer(".\n", add_special_tokens=False).input_ids)

    def draw(self, rng: random.Random, number: int) -> list[Fact]:
        """So many facts, keys and values different.

        Raises:
            InputError: more than there are keys.
        """
        if number > min(MOST, len(self.values)):
            raise InputError(f"{number} facts in a row are too many: give at most {min(MOST, len(self.values))}.")
        values = rng.sample(self.values, number)
        return [
            Fact(asked=tuple(self._ids(f"\nNote: the {key} is")), value=value, end=self._end)
            for key, value in zip(draw_keys(rng, number), values, strict=True)
        ]

    def bury(self, hay: Sequence[int], lines: Sequence[Sequence[int]], places: Sequence[int]) -> list[int]:
        """``lines`` in order within ``hay``, whose end is cut off: as long as ``hay`` was.

        Args:
            places: rising; how much of the hay is before each line, at most :meth:`room`.
        """
        row: list[int] = []
        start = 0
        for place, line in zip(places, lines, strict=True):
            row += [*hay[start:place], *line]
            start = place
        return [*row, *hay[start : self.room(len(hay), lines)]]

    @staticmethod
    def room(length: int, lines: Sequence[Sequence[int]]) -> int:
        """Tokens of hay that stay in a row of this length.

        Raises:
            InputError: the lines are longer than the row.
        """
        room = length - sum(map(len, lines))
        if room < 0:
            raise InputError(f"A row of {length} tokens is too short for its facts. Ask for fewer.")
        return room

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False).input_ids]
