"""Word counting: the answers are the words that a count finds."""

from __future__ import annotations

from collections import Counter

import pytest

from tenuto.texts import words
from tenuto.texts.words import CommonWords, FrequentWords


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(("common", "often"), [(1, 1.0), (10, 0.3)])
def test_common_words(common: int, often: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommonWords, "common", common)
    monkeypatch.setattr(CommonWords, "often", often)
    for seed in range(3):
        example = CommonWords().make(seed, 300, count)
        counted = Counter(example.context.split()).most_common()
        (question,) = example.questions
        assert {word for word, _ in counted[:common]} == set(question.answers)
        assert counted[common - 1][1] > counted[common][1] == 1


def test_a_word_of_the_question_is_never_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "vocabulary", lambda: ("list", "often", "pear", "plum"))
    found = [CommonWords().make(seed, 40, count).questions[0].answers for seed in range(20)]
    assert set(found) == {("pear",), ("plum",)}


def test_frequent_words_follow_the_law() -> None:
    example = FrequentWords().make(0, 3000, count)
    counted = Counter(example.context.split())
    assert example.questions[0].answers == (counted.most_common(1)[0][0],)
    first, second, third = (number / counted.total() for _, number in counted.most_common(3))
    assert abs(first - 1 / 1.2021) < 0.03  # 1 / zeta(3)
    assert abs(second / first - 1 / 8) < 0.03
    assert abs(third / first - 1 / 27) < 0.02
