"""Rounds: what an interrupted benchmark has measured, on disk, so that the same command goes on where it stopped.

A round is one piece of work of every row, in turn; it is kept as a whole, so that the timings which are compared come
from the same minutes of the same process. Each is one file, beside and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tenuto.bench.diffusion.contender import Contender, Piece
from tenuto.errors import InputError
from tenuto.measure.speed import Work
from tenuto.telemetry import Event, Telemetry

__all__ = ["Rounds"]


class Rounds:
    """The rounds done so far of one benchmark.

    Attributes:
        folder: where they are kept; plan: what the benchmark is, JSON-ready; done: read when it begins, in order.

    Raises:
        InputError: the folder holds rounds of another plan, or a file of it is damaged.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, json.loads(json.dumps(plan))
        there = takewhile(Path.is_file, (self._path(number) for number in count()))
        self.done = [self._read(path) for path in there]
        self._now: dict[str, Piece] = {}

    def works(self, rows: Sequence[Contender]) -> dict[str, Work]:
        """The work of each row by name: taken from the rounds that are done, and written as more get done.

        Raises:
            InputError: the rounds have other rows.
        """
        names = [row.name for row in rows]
        for finished in self.done:
            if sorted(finished) != sorted(names):
                raise self._other("rows", sorted(finished), sorted(names))
        return {row.name: partial(self._work, row, len(rows)) for row in rows}

    def remove(self) -> None:
        """The benchmark is complete and its records are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _work(self, row: Contender, rows: int, repeat: int) -> float:
        if repeat < len(self.done):
            row.pieces.append(self.done[repeat][row.name])
            return row.pieces[-1].seconds
        seconds = row.work(repeat)
        self._now[row.name] = row.pieces[-1]
        if len(self._now) == rows:
            self._write(repeat)
            self._now = {}
        return seconds

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:04d}.safetensors"

    def _write(self, number: int) -> None:
        tensors = {name: p.pictures.contiguous() for name, p in self._now.items() if p.pictures is not None}
        told = {
            name: {"seconds": piece.seconds, "calls": piece.calls, "book": asdict(piece.book)}
            for name, piece in self._now.items()
        }
        path = self._path(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        header = {"plan": json.dumps(self.plan), "pieces": json.dumps(told)}
        save_file(tensors or {"": torch.zeros(1)}, temporary, metadata=header)
        os.replace(temporary, path)

    def _read(self, path: Path) -> dict[str, Piece]:
        try:
            with safe_open(path, framework="pt") as file:
                header = {key: json.loads(value) for key, value in file.metadata().items()}
                self._check(header["plan"])
                names = set(file.keys())
                return {
                    name: _piece(told, file.get_tensor if name in names else None, name)
                    for name, told in header["pieces"].items()
                }
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}). Remove it; the rounds before it stay.") from error

    def _check(self, told: dict[str, Any]) -> None:
        for key in self.plan.keys() | told.keys():
            if told.get(key) != self.plan.get(key):
                raise self._other(key, told.get(key), self.plan.get(key))

    def _other(self, key: str, told: object, now: object) -> InputError:
        return InputError(
            f"{self.folder} holds an unfinished benchmark of another job ({key}: {told}, now {now}). "
            "Finish it with its own command, remove that folder, or give another --out."
        )


def _piece(told: dict[str, Any], tensor: Callable[[str], torch.Tensor] | None, name: str) -> Piece:
    book = told["book"]
    events = [Event(**event) for event in book.pop("events")]
    pictures = tensor(name) if tensor else None
    return Piece(seconds=told["seconds"], pictures=pictures, calls=told["calls"], book=Telemetry(events=events, **book))
