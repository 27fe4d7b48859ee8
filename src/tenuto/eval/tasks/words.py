"""Word counting, after RULER (https://arxiv.org/abs/2404.06654, section 3): the words that come most often in a list.

RULER asks for ten common words (30 times each, others 3 times) and, among made-up words whose frequency falls as
rank ** -2, for the first three. The defaults here are what a small model can do.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tenuto.eval.tasks.haystack import longest, vocabulary
from tenuto.eval.tasks.text import Example, Question, TextTask

__all__ = ["CommonWords", "FrequentWords"]

RULER = "RULER (https://arxiv.org/abs/2404.06654)"


class CommonWords(TextTask):
    """RULER's cwe: a numbered list in which a few words come often; a short solved list at the head of the context."""

    __slots__ = ()
    name = "cwe"
    source = RULER
    summary = "The words that come most often in a list."
    common = 2
    often = 12

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        drawn = vocabulary()
        words = rng.sample(drawn, len(drawn))
        shown, frequent, rare = words[: self.common], words[self.common : 2 * self.common], words[2 * self.common :]
        head = _listed(rng, shown * 5 + rare[-8:]) + self._ask() + f" {' and '.join(shown)}.\n\n"
        order = rng.getrandbits(32)

        def build(others: int) -> str:
            return head + _listed(Random(order), frequent * self.often + [rare[i % len(rare)] for i in range(others)])

        context = longest(build, tokens, count)
        question = Question(text=self._ask(), answers=tuple(frequent), most_tokens=6 * self.common)
        return Example(context=context, questions=(question,))

    def _ask(self) -> str:
        return f"\n\nQuestion: Which {self.common} words come most often in the list?\nAnswer: The words are"


class FrequentWords(TextTask):
    """RULER's fwe: made-up words, the n-th most frequent with a share proportional to n ** -2."""

    __slots__ = ()
    name = "fwe"
    source = RULER
    summary = "The most frequent words of a text of made-up words."
    asked = 1
    alpha = 2.0

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        words = ["".join(rng.choice(p) for p in ("bdfgklmnprstvz", "aeiou") * 3) for _ in range(500)]
        shares = [(rank + 1) ** -self.alpha for rank in range(len(words))]
        text = rng.choices(words, shares, k=tokens + 1)
        context = longest(lambda n: " ".join(text[:n]), tokens, count)
        ranked = sorted(set(text), key=lambda word: -context.split().count(word))[: self.asked]
        ask = "\n\nQuestion: Which word comes most often in the text?\nAnswer: The most frequent word is"
        return Example(context=context, questions=(Question(text=ask, answers=tuple(ranked), most_tokens=8),))


def _listed(rng: Random, words: list[str]) -> str:
    return " ".join(f"{n}. {word}" for n, word in enumerate(rng.sample(words, len(words)), 1))
