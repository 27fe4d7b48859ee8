"""Several questions on one context: records and needles in turn, each answer told once."""

from __future__ import annotations

import re

from tenuto.texts.turns import MultiTurn


def test_turns() -> None:
    task = MultiTurn()
    example = task.make(0, 200, lambda text: len(text.split()))
    store = dict(re.findall(r"^Record ([\w ]+): (\d+)$", example.context, re.MULTILINE))
    assert len(store) == task.records
    assert len(example.questions) == 2 * task.asked
    for turn, question in enumerate(example.questions):
        (answer,) = question.answers
        assert example.context.count(answer) == 1
        assert (answer in store.values()) == (turn % 2 == 0)
    assert len({question.answers for question in example.questions}) == 2 * task.asked
