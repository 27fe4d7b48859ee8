"""Facts that begin in one document and end in the next: what is lost when documents are read apart from each other.

What a number is stands at the end of a document, the number at the beginning of the one that follows, as where a long
text is cut into chunks of equal length. Read by itself, the second document has a number and nothing to say of what.

Chosen for SmolLM2-135M-Instruct (float32, greedy, no chat template, contexts of 900 tokens, 15 questions): 0.87 with
the documents read as one text, and 0 with their caches put one after the other. Codes of five keys, all worded alike,
were tried before: 0.8 of 20, and with 15 % of the tokens run again not more than 0.6, however these were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from tenuto.texts.haystack import draw_numbers, longest, noise
from tenuto.texts.task import Example, Question, TextTask

__all__ = ["Documents"]

DIGITS = 5
FACTS = ("Password of Anna", "Phone number of Tom", "Price of the lamp", "Weight of the boat", "Year of the bridge")


class Documents(TextTask):
    """Numbers of different things, one at each border of two documents, among repeated sentences.

    Class attribute: ``parts``, documents of one example.
    """

    __slots__ = ()
    name = "documents"
    source = "our own; the need for it is that of https://arxiv.org/abs/2405.16444, section 3"
    summary = "Numbers; what they are stands at the end of the document before."
    parts: ClassVar[int] = len(FACTS) + 1

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        documents, questions = self.documents(seed, tokens, count)
        return Example(context="".join(documents), questions=questions)

    def documents(
        self, seed: int, tokens: int, count: Callable[[str], int]
    ) -> tuple[tuple[str, ...], tuple[Question, ...]]:
        """One example as documents of at most ``tokens / parts`` tokens each, to be tokenised apart, and questions.

        Raises:
            InputError: ``tokens`` is too short.
        """
        rng = self.random(seed)
        names, numbers = rng.sample(FACTS, len(FACTS)), draw_numbers(rng, len(FACTS), DIGITS)
        begun = [*(f" {name}:" for name in names), ""]
        ended = ["", *(f" {number}. " for number in numbers)]
        documents = [
            _document(*ends, noise(rng), tokens // self.parts, count) for ends in zip(ended, begun, strict=True)
        ]
        questions = tuple(
            Question(
                text=f"\n\nQuestion: What is the {name[0].lower()}{name[1:]}?\nAnswer: {name}:",
                answers=(number,),
                most_tokens=DIGITS + 4,
            )
            for name, number in zip(names, numbers, strict=True)
        )
        return tuple(documents), questions


def _document(head: str, tail: str, hay: Sequence[str], tokens: int, count: Callable[[str], int]) -> str:
    return longest(lambda n: head + " ".join(hay[i % len(hay)] for i in range(n)) + tail, tokens, count)
