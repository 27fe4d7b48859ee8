"""Text to hide things in: repeated sentences or real prose, cut to a number of tokens, and keys and numbers to hide."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle
from pydoc_data.topics import topics
from random import Random

from tenuto.errors import InputError

__all__ = ["bury", "draw_keys", "draw_numbers", "longest", "noise", "prose", "vocabulary"]

NOISE = (
    "The kettle is warm.",
    "The window is open.",
    "A bus goes by outside.",
    "Rain comes and goes.",
    "It is a quiet day.",
)
COLOURS = ("amber", "black", "blue", "brown", "copper", "golden", "green", "ivory", "pink", "purple", "silver", "white")
BEASTS = ("bear", "camel", "crow", "fox", "goat", "horse", "lion", "owl", "rabbit", "swan", "tiger", "whale", "wolf")
THINGS = (
    "apple",
    "basket",
    "boat",
    "bridge",
    "candle",
    "chair",
    "guitar",
    "hat",
    "kite",
    "lamp",
    "river",
    "rose",
    "violin",
)


def noise(rng: Random) -> Sequence[str]:
    """A few plain sentences, the same for every example: what hides in them stands out."""
    return NOISE


def prose(rng: Random) -> Sequence[str]:
    """Python's reference manual as it comes with Python, from a random sentence on; another text in another version."""
    sentences = _manual()
    start = rng.randrange(len(sentences))
    return (*sentences[start:], *sentences[:start])


@cache
def _manual() -> tuple[str, ...]:
    """The sentences of plain paragraphs, in order, each once; about 15,000 tokens."""
    found: dict[str, None] = {}
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            line = " ".join(paragraph.split())
            if re.fullmatch(r"[A-Z][^`|{}<>\\_=*#]{60,}\.", line):
                found.update(dict.fromkeys(re.split(r"(?<=[a-z)]\.) (?=[A-Z])", line)))
    return tuple(found)


@cache
def vocabulary() -> tuple[str, ...]:
    """Plain lower-case words of that manual of 4 to 8 letters, sorted; about 1,000."""
    return tuple(sorted(set(re.findall(r"(?<= )[a-z]{4,8}(?= )", " ".join(_manual())))))


def draw_keys(rng: Random, number: int) -> list[str]:
    """At most 26 keys of two words, such as "silver owl", no two with the same second word."""
    colours = cycle(rng.sample(COLOURS, len(COLOURS)))
    return [f"{colour} {thing}" for colour, thing in zip(colours, rng.sample(BEASTS + THINGS, number), strict=False)]


def draw_numbers(rng: Random, number: int, digits: int) -> list[str]:
    """Different numbers, as text, of so many digits."""
    return [str(n) for n in rng.sample(range(10 ** (digits - 1), 10**digits), number)]


def bury(
    needles: Sequence[str],
    hay: Sequence[str],
    rng: Random,
    tokens: int,
    count: Callable[[str], int],
    head: str = "",
) -> str:
    """``head``, then as much hay as fits with the needles at depths drawn uniformly, their order kept.

    Raises:
        InputError: not even the needles fit.
    """
    depths = sorted(rng.random() for _ in needles)

    def build(sentences: int) -> str:
        text = [hay[i % len(hay)] for i in range(sentences)]
        for depth, needle in reversed(list(zip(depths, needles, strict=True))):
            text.insert(int(depth * (sentences + 1)), needle)
        return head + " ".join(text)

    return longest(build, tokens, count)


def longest(build: Callable[[int], str], tokens: int, count: Callable[[str], int]) -> str:
    """``build(n)`` of the largest n whose text has at most ``tokens`` tokens; texts grow with n.

    Raises:
        InputError: ``build(0)`` is longer.
    """
    if (least := count(build(0))) > tokens:
        raise InputError(f"A context of {tokens} tokens is too short: this example needs {least}. Give more tokens.")
    low, high = 0, 1
    while count(build(high)) <= tokens:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(build(middle)) <= tokens else (low, middle)
    return build(low)
