"""Our end of the pipe to :mod:`kv_peers.kvpress_side`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kv_peers.answering import Answers, Request
from tenuto.errors import AttachError

__all__ = ["Pipe", "kvpress"]


class Pipe:
    """A process that answers one JSON line with another.

    Attributes:
        versions: what it said first.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        self.versions = self._read()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise AttachError(f"The other side has ended without an answer; {self.log} holds what it said.")
        told: dict[str, Any] = json.loads(line)
        return told

    def ask(self, press: str, keep: float, request: Request) -> Answers:
        """One request.

        Raises:
            AttachError: the other library raised, in its own words; or its process has ended.
        """
        if self.process.stdin:
            self.process.stdin.write(json.dumps({"press": press, "keep": keep, "request": asdict(request)}) + "\n")
            self.process.stdin.flush()
        told = self._read()
        if "error" in told:
            raise AttachError(told["error"])
        return Answers(**told)


@contextmanager
def kvpress(python: Path, model: Path, log: Path) -> Iterator[Pipe]:
    """kvpress in the interpreter of its own venv, until the block ends."""
    command = [str(python), "-m", "kv_peers.kvpress_side", "--model", str(model)]
    with pipe(command, log) as found:
        yield found


@contextmanager
def pipe(command: Sequence[str], log: Path) -> Iterator[Pipe]:
    """A process on the other end of a pipe, until the block ends; its standard error goes to ``log``."""
    alone = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (
        log.open("a") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=os.environ | alone
        ) as process,
    ):
        try:
            yield Pipe(process, log)
        finally:
            process.terminate()
