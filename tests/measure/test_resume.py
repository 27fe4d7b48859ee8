"""Finished pieces survive a stop; another job's are refused with what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tenuto.errors import InputError
from tenuto.measure.resume import FOLDER, Unfinished, asked, read_job

PLAN = {"b": [1, "x"], "a": None}


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    out = tmp_path / "new"
    first = Unfinished(out, PLAN)
    assert first.get((3, "x")) is None
    assert not out.exists()
    first.put((3, "x"), {"seconds": 0.5}, {"pictures": torch.arange(6.0).view(2, 3).T})
    first.put((3, "y"), None)
    again = Unfinished(out, dict(reversed(PLAN.items())))
    assert again.get((3, "x")) == {"seconds": 0.5}
    assert list(again.done) == ['[3, "x"]', '[3, "y"]']
    assert torch.equal(again.tensors((3, "x"))["pictures"], torch.arange(6.0).view(2, 3).T)
    assert again.tensors((3, "y")) == {}
    again.remove()
    assert list(out.iterdir()) == []
    again.remove()


def test_without_a_folder_it_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pieces = Unfinished(None, PLAN)
    pieces.put("a", 1)
    assert pieces.get("a") == 1 and not list(tmp_path.iterdir())
    pieces.remove()


def test_a_half_written_last_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "pieces.jsonl"
    Unfinished(tmp_path, PLAN).put(1, "first")
    Unfinished(tmp_path, PLAN).put(2, "second")
    path.write_text(path.read_text()[:-4])
    again = Unfinished(tmp_path, PLAN)
    assert again.get(1) == "first"
    assert again.get(2) is None
    again.put(2, "anew")
    assert Unfinished(tmp_path, PLAN).get(2) == "anew"
    path.write_text(path.read_text()[:5])  # stopped while the plan was written
    assert Unfinished(tmp_path, PLAN).done == {}


def test_another_plan_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "pieces.jsonl"
    Unfinished(tmp_path, PLAN).put(1, "first", {"x": torch.zeros(2)})
    with pytest.raises(InputError, match=r"another job \(a: None, now 1\)"):
        Unfinished(tmp_path, {**PLAN, "a": 1})
    (path.parent / "0000.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="is damaged"):
        Unfinished(tmp_path, PLAN).tensors(1)
    path.write_text(path.read_text() + "{\n[2, 3]\n")
    with pytest.raises(InputError, match="is damaged"):
        Unfinished(tmp_path, PLAN)


def test_how_it_was_asked_is_kept_and_private(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no benchmark that was stopped"):
        read_job(tmp_path)
    token = asked.set({"bench": "kv", "words": ["--store", "x"], "command": "tenuto bench kv"})
    try:
        Unfinished(tmp_path, PLAN).put(1, 2)
    finally:
        asked.reset(token)
    assert read_job(tmp_path)["words"] == ["--store", "x"]
    path = tmp_path / FOLDER / "job.json"
    assert path.stat().st_mode & 0o077 == 0
    for damage in ("{", "[]", json.dumps({"bench": 1, "words": [], "command": "", "threads": 1})):
        path.write_text(damage)
        with pytest.raises(InputError, match="is damaged"):
            read_job(tmp_path)
