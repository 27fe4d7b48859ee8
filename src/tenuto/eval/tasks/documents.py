"""Facts that begin in one document and end in the next: what is lost when documents are read apart from each other.

A key stands at the end of a document, its code at the beginning of the one that follows, as where a long text is cut
into chunks of equal length. Read by itself, the second document has a code and nothing to say whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from tenuto.eval.tasks.haystack import draw_keys, draw_numbers, longest, noise
from tenuto.eval.tasks.text import Example, Question, TextTask

__all__ = ["Documents"]

DIGITS = 5


class Documents(TextTask):
    """Codes of keys, each cut in two by the border of two documents, among repeated sentences.

    Class attribute: ``parts``, documents of one example; one fact less.
    """

    __slots__ = ()
    name = "documents"
    source = "our own; the need for it is that of CacheBlend (https://arxiv.org/abs/2405.16444, section 3)"
    summary = "Codes whose keys stand at the end of the document before."
    parts: ClassVar[int] = 6

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
        keys, codes = draw_keys(rng, self.parts - 1), draw_numbers(rng, self.parts - 1, DIGITS)
        begun = [*(f" Code of the {key}:" for key in keys), ""]
        ended = ["", *(f" {code}. " for code in codes)]
        documents = [
            _document(*ends, noise(rng), tokens // self.parts, count) for ends in zip(ended, begun, strict=True)
        ]
        questions = tuple(
            Question(
                text=f"\n\nQuestion: What is the code of the {key}?\nAnswer: Code of the {key}:",
                answers=(code,),
                most_tokens=DIGITS + 4,
            )
            for key, code in zip(keys, codes, strict=True)
        )
        return tuple(documents), questions


def _document(head: str, tail: str, hay: Sequence[str], tokens: int, count: Callable[[str], int]) -> str:
    return longest(lambda n: head + " ".join(hay[i % len(hay)] for i in range(n)) + tail, tokens, count)
