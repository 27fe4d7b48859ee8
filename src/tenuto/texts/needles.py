"""Needles in a haystack, after RULER (https://arxiv.org/abs/2404.06654, section 3): find numbers hidden in a long text.

Wording, keys and haystacks are our own. The settings are those that a model of 135M parameters can do: numbers of 5
digits, not 7; two values and two queries, not four, and repeated sentences as the haystack of every task, not prose.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from tenuto.texts.haystack import bury, draw_keys, draw_numbers, noise
from tenuto.texts.task import Example, Question, TextTask

__all__ = ["DIGITS", "MultiKey", "MultiQuery", "MultiValue", "Single", "code_sentence"]

DIGITS = 5


def code_sentence(key: str, number: str) -> str:
    """A needle."""
    return f"The code of the {key} is {number}."


class _Needles(TextTask):
    """Numbers of keys, each told in a sentence of its own, at depths drawn uniformly.

    Class attributes: ``keys``, different keys hidden; ``values``, numbers for every key; ``asked``, keys asked for.
    """

    __slots__ = ()
    source = "RULER (https://arxiv.org/abs/2404.06654)"
    keys: ClassVar[int] = 1
    values: ClassVar[int] = 1
    asked: ClassVar[int] = 1

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        keys, numbers = draw_keys(rng, self.keys), draw_numbers(rng, self.keys * self.values, DIGITS)
        told = [(key, number) for key in keys for number in (numbers.pop() for _ in range(self.values))]
        answers = tuple(number for key, number in told if key in keys[: self.asked])
        needles = [code_sentence(key, number) for key, number in rng.sample(told, len(told))]
        context = bury(needles, noise(rng), rng, tokens, count)
        question = self.ask(keys[: self.asked])
        most = DIGITS + 4 if len(answers) == 1 else (DIGITS + 9) * len(answers)
        return Example(context=context, questions=(Question(text=question, answers=answers, most_tokens=most),))

    @abstractmethod
    def ask(self, keys: Sequence[str]) -> str:
        """The question about these keys, and how the answer begins."""


class Single(_Needles):
    """RULER's niah_single."""

    __slots__ = ()
    name = "niah_single"
    summary = "One number hidden in repeated sentences."

    def ask(self, keys: Sequence[str]) -> str:
        return f"\n\nQuestion: What is the code of the {keys[0]}?\nAnswer: The code of the {keys[0]} is"


class MultiKey(_Needles):
    """RULER's niah_multikey: the other keys are distractors."""

    __slots__ = ()
    name = "niah_multikey"
    summary = "One of four numbers hidden in repeated sentences, found by its key."
    keys = 4

    def ask(self, keys: Sequence[str]) -> str:
        return f"\n\nFrom the text: The code of the {keys[0]} is"


class MultiValue(_Needles):
    """RULER's niah_multivalue."""

    __slots__ = ()
    name = "niah_multivalue"
    summary = "Both numbers of one key, hidden in repeated sentences."
    values = 2

    def ask(self, keys: Sequence[str]) -> str:
        return f"\n\nQuestion: What are the two codes of the {keys[0]}?\nAnswer: The two codes of the {keys[0]} are"


class MultiQuery(_Needles):
    """RULER's niah_multiquery."""

    __slots__ = ()
    name = "niah_multiquery"
    summary = "The numbers of two keys, hidden in repeated sentences."
    keys = 2
    asked = 2

    def ask(self, keys: Sequence[str]) -> str:
        names = " and ".join(f"the {key}" for key in keys)
        return f"\n\nQuestion: What are the codes of {names}?\nAnswer: The code of the {keys[0]} is"
