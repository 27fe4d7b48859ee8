"""Passkey retrieval (https://arxiv.org/abs/2305.16300, section 4.2): one number in a text without content."""

from __future__ import annotations

from collections.abc import Callable

from tenuto.texts.haystack import bury, draw_numbers, noise
from tenuto.texts.task import Example, Question, TextTask

__all__ = ["Passkey"]


class Passkey(TextTask):
    """The pass key is told once, at a depth drawn uniformly."""

    __slots__ = ()
    name = "passkey"
    source = "Landmark Attention (https://arxiv.org/abs/2305.16300)"
    summary = "A pass key hidden in repeated sentences."

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        (key,) = draw_numbers(rng, 1, 5)
        head = "One sentence of this text tells a pass key. Keep it in mind.\n\n"
        context = bury([f"The pass key is {key}; keep {key} in mind."], noise(rng), rng, tokens, count, head)
        text = "\n\nQuestion: What is the pass key?\nAnswer: The pass key is"
        return Example(context=context, questions=(Question(text=text, answers=(key,), most_tokens=10),))
