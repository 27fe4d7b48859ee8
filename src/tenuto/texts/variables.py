"""Variable tracking, after RULER (https://arxiv.org/abs/2404.06654, section 3): follow a chain of assignments through a
long text and name its variables. RULER has four hops; a model of 135M parameters can follow one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import ClassVar

from tenuto.texts.haystack import bury, draw_numbers, noise
from tenuto.texts.task import Example, Question, TextTask

__all__ = ["Variables"]


class Variables(TextTask):
    """One chain of assignments in repeated sentences; as in RULER, a solved chain stands at the head of the context.

    Class attribute: ``hops``, assignments of a variable to a variable.
    """

    __slots__ = ()
    name = "vt"
    source = "RULER (https://arxiv.org/abs/2404.06654)"
    summary = "All variables that hold a number, one assigned to the next."
    hops: ClassVar[int] = 1

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        triples = [a + b + c for a in ascii_uppercase for b in ascii_uppercase for c in ascii_uppercase]
        names = rng.sample(triples, 2 * (self.hops + 1))
        shown, chain = names[: self.hops + 1], names[self.hops + 1 :]
        solved, value = draw_numbers(rng, 2, 5)
        listed = "\n".join(f"{n}. Variable {name}" for n, name in enumerate(shown, 1)).removeprefix("1. Variable")
        head = " ".join(_assignments(shown, solved)) + self._ask(solved) + listed + "\n\n"
        context = bury(_assignments(chain, value), noise(rng), rng, tokens, count, head)
        question = Question(text=self._ask(value), answers=tuple(chain), most_tokens=9 * len(chain))
        return Example(context=context, questions=(question,))

    def _ask(self, value: str) -> str:
        return f"\n\nThe {self.hops + 1} variables that hold {value}, in the order of the text:\n1. Variable"


def _assignments(names: Sequence[str], value: str) -> list[str]:
    return [f"Variable {name} is {held}." for name, held in zip(names, [value, *names], strict=False)]
