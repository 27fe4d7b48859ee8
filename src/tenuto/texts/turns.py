"""Several questions on one shared context, after SCBench (https://arxiv.org/abs/2412.10319): a context is compressed
once, and what its later questions need must not have been thrown away for the first. Sizes and wording are our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from tenuto.texts.haystack import bury, draw_keys, draw_numbers, noise
from tenuto.texts.needles import DIGITS, code_sentence
from tenuto.texts.task import Example, Question, TextTask

__all__ = ["MultiTurn"]


class MultiTurn(TextTask):
    """A key-value store and needles, in repeated sentences; questions about the store and the needles in turn.

    Class attributes: ``records`` of the store; ``needles``; ``asked``, questions about each.
    """

    __slots__ = ()
    name = "multi_turn"
    source = "SCBench (https://arxiv.org/abs/2412.10319)"
    summary = "Four questions on one text: two on its key-value store, two on its needles."
    records: ClassVar[int] = 3
    needles: ClassVar[int] = 3
    asked: ClassVar[int] = 2

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        keys = draw_keys(rng, self.records + self.needles)
        codes = dict(zip(keys, draw_numbers(rng, len(keys), DIGITS), strict=True))
        stored, told = keys[: self.records], keys[self.records :]
        store = "\n" + "\n".join(f"Record {key}: {codes[key]}" for key in stored) + "\n"
        pieces = [store, *(code_sentence(key, codes[key]) for key in told)]
        context = bury(rng.sample(pieces, len(pieces)), noise(rng), rng, tokens, count)
        questions = []
        for record, needle in zip(rng.sample(stored, self.asked), rng.sample(told, self.asked), strict=True):
            asks = {
                record: f"\n\nFrom the records:\nRecord {record}:",
                needle: f"\n\nQuestion: What is the code of the {needle}?\nAnswer: The code of the {needle} is",
            }
            for key, text in asks.items():
                questions.append(Question(text=text, answers=(codes[key],), most_tokens=DIGITS + 4))
        return Example(context=context, questions=tuple(questions))
