"""The contract of a text task: a context to be cached, then questions about it whose right answers are known.

Context and question are tokenised apart and put one after the other, so that a context can be compressed before its
questions are known, and several questions asked on one compressed context.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Example", "Question", "TextTask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What follows the context, up to where the model's answer begins.

    Attributes:
        text: the question with what opens the answer; answers: texts that a right answer holds, all of them.
        most_tokens: tokens the model may write.
    """

    text: str
    answers: tuple[str, ...]
    most_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One context with its questions."""

    context: str
    questions: tuple[Question, ...]


class TextTask(ABC):
    """Generates examples offline.

    Class attributes: ``name``, as typed on the command line; ``source``, the benchmark it follows; ``summary``, one
    sentence about what is asked.
    """

    __slots__ = ()
    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        """One example, the same for the same arguments.

        Args:
            seed: of its own random generator (:meth:`random`).
            tokens: the most tokens the context may have; it comes as close as whole sentences allow.
            count: tokens of a text.

        Raises:
            InputError: ``tokens`` is too short for this task; the message gives the least.
        """

    def score(self, answer: str, question: Question) -> float:
        """The fraction of the right answers' texts that ``answer`` holds, upper or lower case alike (RULER's
        ``string_match_all``)."""
        said = answer.lower()
        return sum(right.lower() in said for right in question.answers) / len(question.answers)

    def random(self, seed: int) -> random.Random:
        """A generator for this task and seed."""
        return random.Random(f"{self.name} {seed}")
