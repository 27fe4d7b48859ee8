"""What was measured comes back from disk as it was, and never into another benchmark."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tenuto.bench.diffusion.contender import Piece
from tenuto.bench.diffusion.rounds import Rounds
from tenuto.errors import InputError
from tenuto.measure.resume import Unfinished
from tenuto.telemetry import Event, Telemetry

PLAN = {"steps": 4, "policies": ["every_n"], "fewer": None}


def row(name: str) -> Any:
    """Draws two pictures in the first round, and none in the second."""
    made = SimpleNamespace(name=name, pieces=[])

    def work(repeat: int) -> float:
        event = Event(generation=0, step=repeat, branch="both", first_block=0, last_block=1, decision="reuse")
        book = Telemetry(events=[event], flops=1.5, full_flops=3.0, peak_cache_bytes=8)
        pictures = torch.rand(2, 1, 4, 4) if repeat == 0 else None
        made.pieces.append(Piece(seconds=0.1 + repeat, pictures=pictures, calls=4, book=book))
        return float(made.pieces[-1].seconds)

    made.work = work
    return made


def measure(folder: Path, rounds: int) -> list[Any]:
    rows = [row("none"), row("every_n")]
    works = Rounds(Unfinished(folder, PLAN)).works(rows)
    for repeat in range(rounds):
        for name in works:
            works[name](repeat)
    return rows


def test_a_round_is_kept_when_it_is_complete(tmp_path: Path) -> None:
    rows = [row("none"), row("every_n")]
    works = Rounds(Unfinished(tmp_path, PLAN)).works(rows)
    works["none"](0)
    assert not list(tmp_path.iterdir())
    works["every_n"](0)
    assert sorted(path.name for path in (tmp_path / "unfinished").iterdir()) == ["0000.safetensors", "pieces.jsonl"]


def test_pieces_come_back_as_they_were(tmp_path: Path) -> None:
    first, again = measure(tmp_path, 2), measure(tmp_path, 3)
    for before, after in zip(first, again, strict=True):
        assert len(after.pieces) == 3
        for old, new in zip(before.pieces, after.pieces, strict=False):
            assert (old.seconds, old.calls, old.book) == (new.seconds, new.calls, new.book)
            if old.pictures is None:
                assert new.pictures is None
            else:
                assert torch.equal(old.pictures, new.pictures)


def test_other_rows_are_refused(tmp_path: Path) -> None:
    measure(tmp_path, 1)
    with pytest.raises(InputError, match="another job \\(rows"):
        Rounds(Unfinished(tmp_path, PLAN)).works([row("none")])
