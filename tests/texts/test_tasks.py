"""The registry, and what holds for every text task."""

from __future__ import annotations

import pytest

from tenuto.errors import InputError
from tenuto.texts.task import TextTask
from tenuto.texts.tasks import EASY, TEXT_TASKS, parse_tasks

EVERY = pytest.mark.parametrize("task", TEXT_TASKS.values(), ids=TEXT_TASKS)


def count(text: str) -> int:
    return len(text.split())


@EVERY
@pytest.mark.parametrize("tokens", [300, 1000])
def test_contexts_are_as_long_as_asked_and_no_longer(task: TextTask, tokens: int) -> None:
    for seed in range(3):
        example = task.make(seed, tokens, count)
        assert tokens - 80 < count(example.context) <= tokens
        assert example == task.make(seed, tokens, count)
        assert example != task.make(seed + 1, tokens, count)


@EVERY
def test_the_context_holds_the_answers_and_not_the_questions(task: TextTask) -> None:
    for seed in range(3):
        example = task.make(seed, 300, count)
        for question in example.questions:
            assert question.text not in example.context
            assert all(answer in example.context for answer in question.answers)
            assert task.score(" ".join(question.answers).upper(), question) == 1
            assert task.score("", question) == 0
            assert task.score(question.text, question) == 0
            assert question.most_tokens >= sum(len(answer) for answer in question.answers) / 3


@EVERY
def test_too_short(task: TextTask) -> None:
    with pytest.raises(InputError, match="too short: this example needs"):
        task.make(0, 0, count)


def test_names() -> None:
    assert list(TEXT_TASKS) == [task.name for task in TEXT_TASKS.values()]
    assert set() < set(EASY) < set(TEXT_TASKS)
    assert parse_tasks(" vt, niah_single,") == ["vt", "niah_single"]
    assert parse_tasks("perplexity,cwe", also=("perplexity",)) == ["perplexity", "cwe"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nia_single", "'nia_single' is unknown. Did you mean 'niah_single'"),
        ("perplexity", "'perplexity' is unknown"),
        ("vt,vt", "each once"),
        (" , ", "at least one"),
    ],
)
def test_what_is_not_a_task(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_tasks(text)
