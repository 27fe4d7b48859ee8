"""Word counting, after RULER (https://arxiv.org/abs/2404.06654, section 3): the word that comes most often.

RULER asks for ten common words of a numbered list (each ten times as often as the others), and for the first three
among made-up words of six letters (alpha = 2). Here one word is asked for, half of a list without numbers or 83 % of a
text of four-letter words: a model of 135M parameters still misses many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import ClassVar

from tenuto.texts.haystack import longest, vocabulary
from tenuto.texts.task import Example, Question, TextTask

__all__ = ["CommonWords", "FrequentWords"]

RULER = "RULER (https://arxiv.org/abs/2404.06654)"
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


class CommonWords(TextTask):
    """RULER's cwe: common words come often, the others once (again and again only if the vocabulary is used up).

    Class attributes: ``common``, common words; ``often``, how often each comes for one other word.
    """

    __slots__ = ()
    name = "cwe"
    source = RULER
    summary = "The word that comes most often in a list of words."
    common: ClassVar[int] = 1
    often: ClassVar[float] = 1.0

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        text = "\n\nQuestion: Which word comes most often in the list?\nAnswer: The word that comes most often is"
        words = [word for word in vocabulary() if word not in text]
        rng.shuffle(words)
        frequent, rare = words[: self.common], words[self.common :]
        order = rng.getrandbits(32)

        def build(others: int) -> str:
            listed = frequent * max(2, round(self.often * others)) + [rare[n % len(rare)] for n in range(others)]
            Random(order).shuffle(listed)
            return " ".join(listed)

        question = Question(text=text, answers=tuple(frequent), most_tokens=8 * self.common)
        return Example(context=longest(build, tokens, count), questions=(question,))


class FrequentWords(TextTask):
    """RULER's fwe: made-up words, the n-th most frequent with a share proportional to n ** -alpha.

    Class attributes: ``alpha``; ``asked``, how many of the most frequent are the answer.
    """

    __slots__ = ()
    name = "fwe"
    source = RULER
    summary = "The most frequent word of a text of made-up words."
    alpha: ClassVar[float] = 3.0
    asked: ClassVar[int] = 1

    def make(self, seed: int, tokens: int, count: Callable[[str], int]) -> Example:
        rng = self.random(seed)
        syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
        words = rng.sample([first + second for first in syllables for second in syllables], 500)
        drawn = rng.choices(words, [rank**-self.alpha for rank in range(1, len(words) + 1)], k=tokens + 1)
        context = longest(lambda n: " ".join(drawn[: n + 1]), tokens, count)
        answers = tuple(word for word, _ in Counter(context.split()).most_common(self.asked))
        text = "\n\nQuestion: Which word comes most often in the text?\nAnswer: The word that comes most often is"
        return Example(context=context, questions=(Question(text=text, answers=answers, most_tokens=8 * self.asked),))
