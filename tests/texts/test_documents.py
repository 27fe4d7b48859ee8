"""Documents: no document holds a whole fact, all together hold each, and questions are answered by them."""

from __future__ import annotations

import re

import pytest

from tenuto.texts.documents import Documents


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("seed", range(3))
def test_every_fact_is_cut_by_the_border_of_two_documents(seed: int) -> None:
    documents, questions = Documents().documents(seed, 240, count)
    assert len(documents) == Documents.parts
    assert len(questions) == Documents.parts - 1
    whole = re.compile(r"\. ([A-Z][\w ]+): (\d{5})\.")
    assert not [document for document in documents if whole.search(document)]
    held = dict(whole.findall("".join(documents)))
    for question in questions:
        (asked,) = re.findall(r"Answer: ([\w ]+):$", question.text)
        assert f"What is the {asked[0].lower()}{asked[1:]}?" in question.text
        assert question.answers == (held[asked],)
        assert held[asked] not in question.text
    assert len(set(held.values())) == len(questions)


def test_documents_are_as_long_as_asked_and_no_longer() -> None:
    task = Documents()
    documents, _ = task.documents(0, 240, count)
    assert all(30 < count(document) <= 40 for document in documents)
    example = task.make(0, 240, count)
    assert example.context == "".join(documents)
    assert example == task.make(0, 240, count) != task.make(1, 240, count)
