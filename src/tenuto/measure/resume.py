"""Unfinished: what a long benchmark has measured so far, on disk, so that it goes on where it was stopped.

Pieces are kept in ``DIR/unfinished`` as soon as they are measured, a JSON line each, with their tensors in a file of
their own, and the folder goes when the records are written. The first line is the plan: what must be equal for one run
to go on with what another measured.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tenuto.errors import InputError

__all__ = ["FOLDER", "Unfinished", "asked", "read_job"]

FOLDER = "unfinished"
PIECES, JOB = "pieces.jsonl", "job.json"

asked: ContextVar[dict[str, Any] | None] = ContextVar("tenuto_asked", default=None)
"""How the command line was asked for the present benchmark: ``bench``, ``words``, ``command``."""


class Unfinished:
    """Finished pieces of a benchmark by key. A half-written last line is measured again.

    Args:
        out: the benchmark's folder, where ``unfinished`` is made with the first piece; None: nothing is kept.
        plan: what the benchmark is, JSON-ready.

    Attributes:
        done: what was measured, before and since, by the key's JSON.

    Raises:
        InputError: the folder holds pieces of another plan, or is damaged.
    """

    def __init__(self, out: Path | None, plan: Mapping[str, Any]) -> None:
        self.folder = None if out is None else out / FOLDER
        self.plan: dict[str, Any] = json.loads(json.dumps(plan))
        self.done: dict[str, Any] = {}
        if self.folder is not None and (self.folder / PIECES).is_file():
            self._read(self.folder / PIECES)

    def _read(self, path: Path) -> None:
        text = path.read_text()
        whole, _, _ = text.rpartition("\n")
        if not whole:
            path.unlink()  # stopped while the plan was written
            return
        head, *lines = whole.split("\n")
        try:
            self._check(json.loads(head))
            self.done = {json.dumps(key): value for key, value in map(json.loads, lines)}
        except (ValueError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from error
        if whole + "\n" != text:
            path.write_text(whole + "\n")

    def _check(self, before: dict[str, Any]) -> None:
        for key in {**before, **self.plan}:
            if before.get(key) != self.plan.get(key):
                raise self.other(key, before.get(key), self.plan.get(key))

    def other(self, key: str, before: object, now: object) -> InputError:
        """The error where the folder is another benchmark's."""
        was, is_now = str(before)[:120], str(now)[:120]
        return InputError(
            f"{self.folder} holds an unfinished benchmark of another job ({key}: {was}, now {is_now}). Finish it with "
            "its own command, remove that folder, or give another --out."
        )

    def get(self, key: Any) -> Any:
        """What was measured under this key, None if nothing was."""
        return self.done.get(json.dumps(key))

    def tensors(self, key: Any) -> dict[str, torch.Tensor]:
        """The tensors that were kept with a piece, by name; none if none were.

        Raises:
            InputError: their file is damaged.
        """
        path = self._path(key)
        if path is None or not path.is_file():
            return {}
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error

    def put(self, key: Any, value: Any, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Keep a finished piece: a JSON value, and tensors by name."""
        self.done[json.dumps(key)] = json.loads(json.dumps(value))
        if self.folder is None:
            return
        self._begin(self.folder)
        path = self._path(key)
        if tensors and path is not None:
            temporary = path.with_suffix(".tmp")
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
            os.replace(temporary, path)
        pieces = self.folder / PIECES
        head = "" if pieces.is_file() else json.dumps(self.plan) + "\n"
        with pieces.open("a") as file:
            file.write(head + json.dumps([key, value]) + "\n")

    def _begin(self, folder: Path) -> None:
        if folder.is_dir():
            return
        folder.mkdir(parents=True)
        if (job := asked.get()) is not None:
            mine = os.open(folder / JOB, os.O_WRONLY | os.O_CREAT, 0o600)  # addresses may have passwords in them
            with os.fdopen(mine, "w") as file:
                file.write(json.dumps({**job, "threads": torch.get_num_threads()}))

    def _path(self, key: Any) -> Path | None:
        number = list(self.done).index(json.dumps(key))
        return None if self.folder is None else self.folder / f"{number:04d}.safetensors"

    def remove(self) -> None:
        """The benchmark is complete and its records are written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged ({error}). Remove {path.parent} and run the benchmark again.")


def read_job(out: Path) -> dict[str, Any]:
    """How the command line was asked for the unfinished benchmark in ``out``.

    Gives ``bench``, ``words`` and ``command``, and how many ``threads`` there were.

    Raises:
        InputError: there is none, or what it was asked is damaged.
    """
    path = out / FOLDER / JOB
    try:
        job: dict[str, Any] = json.loads(path.read_text())
        kinds = {"bench": str, "words": list, "command": str, "threads": int}
        if not all(isinstance(job[key], kind) for key, kind in kinds.items()):
            raise ValueError(f"it does not say {', '.join(kinds)}")
    except OSError as error:
        raise InputError(
            f"{out} holds no benchmark that was stopped. Give the --out folder of one, or begin one without --resume."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}). Run the command again that began the benchmark.") from error
    return job
