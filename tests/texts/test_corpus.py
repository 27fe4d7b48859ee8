from __future__ import annotations

import re

import pytest

from tenuto.texts import corpus
from tenuto.texts.corpus import Document, split

WORDS = "this paragraph says something that is long enough to be kept as a document of its own and it goes on like it "


def documents(count: int = 200) -> list[Document]:
    shared = "Shared by all. " + WORDS
    return [Document(name=f"d/{i}", text=f"{shared}\n\nOnly in {i}. {WORDS * 3}") for i in range(count)]


def test_parts_are_disjoint_and_the_same_every_time() -> None:
    first, again = split(documents()), split(documents())
    assert first == again and first.digest == again.digest
    assert {d.name for d in first.train} & {d.name for d in first.held} == set()
    paragraphs = [p for d in (*first.train, *first.held) for p in re.split(r"\n\s*\n", d.text.strip())]
    assert len(paragraphs) == len(set(paragraphs)) == 201
    assert 2 <= len(first.held) <= 25
    assert split(documents(199)).digest != first.digest
    assert set(split(documents(100)).held) <= set(first.held), "more documents move none to the other part"


def test_docstrings_are_collected_and_other_files_are_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.py").write_text('"""First."""\ndef f():\n    """Second\n\n    line."""\nclass C:\n    x = 1\n')
    (tmp_path / "b.py").write_text("not python {")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "c.py").write_text('"""Left out."""')
    found = [(d.name, d.text) for d in corpus._docstrings("p", tmp_path)]
    assert found == [("p/a.py", "First.\n\nSecond\n\nline."), ("p/b.py", "")]


def test_without_the_bible_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert list(corpus._bible()) == []
    assert not split(documents()).bible
    assert split([Document(name="bible/Ge 0", text=WORDS * 3)]).bible
