"""Text to hide things in: as long as asked, never longer, the needles inside and at uniform depths."""

from __future__ import annotations

from random import Random

import pytest

from tenuto.errors import InputError
from tenuto.texts.haystack import bury, draw_keys, draw_numbers, longest, noise, prose, vocabulary


def count(text: str) -> int:
    return len(text.split())


def test_depths_are_uniform() -> None:
    depths = []
    for seed in range(200):
        text = bury(["HERE"], noise(Random(seed)), Random(seed), 200, count)
        depths.append(text.split().index("HERE") / 200)
    assert min(depths) < 0.05
    assert max(depths) > 0.95
    assert abs(sum(depths) / 200 - 0.5) < 0.06  # three standard errors


def test_needles_keep_their_order_and_the_head_comes_first() -> None:
    words = bury(["one", "two", "three"], noise(Random(0)), Random(5), 60, count, head="Head. ").split()
    assert words[0] == "Head."
    assert words.index("one") < words.index("two") < words.index("three")


def test_as_long_as_fits() -> None:
    for tokens in range(3, 60):
        assert count(longest(lambda n: "a " * (3 + 2 * n), tokens, count)) == tokens - (tokens + 1) % 2
    with pytest.raises(InputError, match=r"2 tokens is too short: .* needs 3\."):
        longest(lambda n: "a " * (3 + 2 * n), 2, count)


def test_prose_is_real_enough_and_starts_elsewhere() -> None:
    sentences = prose(Random(0))
    assert sum(map(count, sentences)) > 8_000
    assert len(set(sentences)) == len(sentences)
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    assert sorted(sentences) == sorted(prose(Random(1)))
    assert sentences[0] != prose(Random(1))[0]


def test_keys_numbers_and_words_differ() -> None:
    keys, numbers = draw_keys(Random(0), 26), draw_numbers(Random(0), 300, 5)
    assert len({key.split()[1] for key in keys}) == 26
    assert len({key.split()[0] for key in keys[:12]}) == 12
    assert len(set(numbers)) == 300
    assert {len(number) for number in numbers} == {5}
    assert len(vocabulary()) > 500
