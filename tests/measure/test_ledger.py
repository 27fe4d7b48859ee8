"""Finished rounds survive a stop; another job's are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.measure.ledger import Ledger

PLAN = {"b": [1, "x"], "a": None}


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rounds.jsonl"
    first = Ledger(path, PLAN)
    assert first.get((3, "x")) is None
    assert not path.parent.exists()
    first.put((3, "x"), {"seconds": 0.5})
    first.put((3, "y"), None)
    again = Ledger(path, dict(reversed(PLAN.items())))
    assert again.get((3, "x")) == {"seconds": 0.5}
    assert list(again.done) == ['[3, "x"]', '[3, "y"]']
    again.remove()
    assert not path.exists()
    again.remove()


def test_a_half_written_last_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    Ledger(path, PLAN).put(1, "first")
    Ledger(path, PLAN).put(2, "second")
    path.write_text(path.read_text()[:-4])
    again = Ledger(path, PLAN)
    assert again.get(1) == "first"
    assert again.get(2) is None
    again.put(2, "anew")
    assert Ledger(path, PLAN).get(2) == "anew"


def test_another_plan_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    Ledger(path, PLAN).put(1, "first")
    with pytest.raises(InputError, match="another job"):
        Ledger(path, {**PLAN, "a": 1})
    path.write_text(path.read_text() + "{\n[2, 3]\n")
    with pytest.raises(InputError, match="is damaged"):
        Ledger(path, PLAN)
