"""Needles: what is hidden, how often, and that only the context tells it."""

from __future__ import annotations

import pytest

from tenuto.texts.needles import MultiKey, MultiQuery, MultiValue, Single
from tenuto.texts.task import TextTask


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("task", "hidden", "answers"), [(Single(), 1, 1), (MultiKey(), 4, 1), (MultiValue(), 2, 2), (MultiQuery(), 2, 2)]
)
def test_needles(task: TextTask, hidden: int, answers: int) -> None:
    example = task.make(3, 150, count)
    (question,) = example.questions
    assert example.context.count("The code of the ") == hidden
    assert len(set(question.answers)) == answers
    for answer in question.answers:
        assert example.context.count(answer) == 1
        assert answer not in question.text
        (sentence,) = [part for part in example.context.split(". ") if answer in part]
        key = sentence.split("The code of ")[1].split(" is ")[0]
        assert key in question.text


def test_the_distractors_of_multikey_are_not_asked_for() -> None:
    example = MultiKey().make(0, 150, count)
    keys = [part.split(" is ")[0] for part in example.context.split("The code of ")[1:]]
    assert sum(key in example.questions[0].text for key in keys) == 1


def test_multiquery_asks_in_no_order_of_the_text() -> None:
    orders = set()
    for seed in range(10):
        example = MultiQuery().make(seed, 100, count)
        first, second = (example.context.index(answer) for answer in example.questions[0].answers)
        orders.add(first < second)
    assert orders == {True, False}
