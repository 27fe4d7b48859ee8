"""Variable tracking: only the chain holds the value, and the solved one before it is another."""

from __future__ import annotations

import re

import pytest

from tenuto.texts.variables import Variables


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("hops", [1, 4])
def test_following_the_assignments_gives_the_answers(hops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Variables, "hops", hops)
    for seed in range(5):
        example = Variables().make(seed, 200, count)
        (question,) = example.questions
        holds: dict[str, str] = {}
        for name, value in re.findall(r"Variable (\w{3}) is (\w+)\.", example.context):
            holds[name] = holds.get(value, value)
        (asked,) = re.findall(r"\d{5}", question.text)
        assert tuple(name for name, value in holds.items() if value == asked) == question.answers
        assert len(question.answers) == hops + 1
        assert len(set(holds.values())) == 2


def test_the_solved_chain_is_answered_as_the_question_asks() -> None:
    example = Variables().make(0, 200, count)
    solved = re.search(
        r"The 2 variables that hold (\d+), in the order of the text:\n1. Variable (\w+)\n2. Variable (\w+)\n\n",
        example.context,
    )
    assert solved
    assert f"Variable {solved[2]} is {solved[1]}." in example.context
    assert f"Variable {solved[3]} is {solved[2]}." in example.context
