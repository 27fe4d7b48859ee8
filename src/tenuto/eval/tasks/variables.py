"""Variable tracking, after RULER (https://arxiv.org/abs/2404.06654, section 3): follow a chain of assignments through a
long text and name every variable of it. RULER has four hops; the default here is what a small model can do."""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random
from typing import ClassVar

from tenuto.eval.tasks.haystack import bury, draw_numbers, noise
from tenuto.eval.tasks.text import Example, Question, TextTask

__all__ = ["Variables"]


class Variables(TextTask):
    """A chain of assignments in repeated sentences, with a solved chain at the head of the context, as in RULER.

    Class attribute: ``hops``, assignments after the first.
    """

    __slots__ = ()
    name = "vt"
    source = "RULER (https://arxiv.org/abs/2404.06654)"
    summary = "All variables that hold a number, one assigned to the next."
    hops: ClassVar[int] = 2

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        names = _names(rng, 2 * (self.hops + 1))
        shown, value = draw_numbers(rng, 2, 5)
        first, chain = names[: len(names) // 2], names[len(names) // 2 :]
        head = " ".join([*_assignments(first, shown)]) + self._ask(shown) + f" {', '.join(first)}.\n\n"
        hay = noise(rng)
        context = bury(_assignments(chain, value), hay, rng, tokens, count, head)
        most = 6 * len(chain)
        return Example(
            context=context, questions=(Question(text=self._ask(value), answers=tuple(chain), most_tokens=most),)
        )

    def _ask(self, value: str) -> str:
        return f"\n\nQuestion: Which {self.hops + 1} variables are {value}?\nAnswer: The variables that are {value} are"


def _names(rng: Random, number: int) -> list[str]:
    return ["".join(rng.choices(string.ascii_uppercase, k=3)) for _ in range(number)]


def _assignments(names: list[str], value: str) -> list[str]:
    return [f"Variable {name} is {held}." for name, held in zip(names, [value, *names], strict=False)]
