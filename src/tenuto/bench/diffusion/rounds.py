"""Rounds: one piece of work of every row, in turn, kept as a whole once it is measured.

So the timings that are compared come from the same minutes of the same process, whether or not the benchmark was
stopped between two rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from tenuto.bench.diffusion.contender import Contender, Piece
from tenuto.measure.resume import Unfinished
from tenuto.measure.speed import Work
from tenuto.telemetry import Event, Telemetry

__all__ = ["Rounds"]


class Rounds:
    """The rounds of one benchmark.

    Attributes:
        unfinished: where they are kept.
        done: how many were measured before.
    """

    def __init__(self, unfinished: Unfinished) -> None:
        self.unfinished = unfinished
        self.done = len(unfinished.done)
        self._now: dict[str, Piece] = {}

    def works(self, rows: Sequence[Contender]) -> dict[str, Work]:
        """The work of each row by name: taken from the rounds that are done, and kept as more get done.

        Raises:
            InputError: the rounds have other rows.
        """
        names = sorted(row.name for row in rows)
        for number in range(self.done):
            if (before := sorted(self.unfinished.get(number))) != names:
                raise self.unfinished.other("rows", before, names)
        return {row.name: partial(self._work, row, len(rows)) for row in rows}

    def _work(self, row: Contender, rows: int, repeat: int) -> float:
        if repeat < self.done:
            row.pieces.append(self._piece(repeat, row.name))
            return row.pieces[-1].seconds
        seconds = row.work(repeat)
        self._now[row.name] = row.pieces[-1]
        if len(self._now) == rows:
            self._put(repeat)
            self._now = {}
        return seconds

    def _put(self, number: int) -> None:
        pictures = {name: p.pictures for name, p in self._now.items() if p.pictures is not None}
        facts = {
            name: {"seconds": piece.seconds, "calls": piece.calls, "book": asdict(piece.book)}
            for name, piece in self._now.items()
        }
        self.unfinished.put(number, facts, pictures)

    def _piece(self, number: int, name: str) -> Piece:
        facts: dict[str, Any] = self.unfinished.get(number)[name]
        book = dict(facts["book"])
        events = [Event(**event) for event in book.pop("events")]
        pictures = self.unfinished.tensors(number).get(name)
        telemetry = Telemetry(events=events, **book)
        return Piece(seconds=facts["seconds"], pictures=pictures, calls=facts["calls"], book=telemetry)
