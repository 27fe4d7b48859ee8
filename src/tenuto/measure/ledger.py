"""Ledger: the rounds a long benchmark has measured, a JSON line each, so that the same command goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tenuto.errors import InputError

__all__ = ["Ledger"]


class Ledger:
    """Finished rounds by key. The first line of the file is the plan; a half-written last line is measured again.

    Attributes:
        path: of the file; done: what was measured before and since, by the key's JSON.

    Raises:
        InputError: the file is of another plan, or damaged before its last line.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path, self.done = path, dict[str, Any]()
        self._head = mine = json.dumps(plan, sort_keys=True)
        if not path.is_file() or not (text := path.read_text()):
            return  # nothing is written before there is something to keep
        whole, _, _ = text.rpartition("\n")
        head, *lines = whole.split("\n")
        if head != mine:
            raise InputError(
                f"{path.parent} holds an unfinished benchmark of another job. Finish it with its own command, remove "
                f"{path}, or give another --out."
            )
        try:
            self.done = {json.dumps(key): told for key, told in map(json.loads, lines)}
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}). Remove it and run the benchmark again.") from error
        if whole + "\n" != text:
            path.write_text(whole + "\n")

    def get(self, key: Any) -> Any:
        """What was measured under this key, None if nothing was."""
        return self.done.get(json.dumps(key))

    def put(self, key: Any, told: Any) -> None:
        """Keep a finished round."""
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(f"{self._head}\n")
        with self.path.open("a") as file:
            file.write(json.dumps([key, told]) + "\n")
        self.done[json.dumps(key)] = json.loads(json.dumps(told))

    def remove(self) -> None:
        """The benchmark is complete and its records are written."""
        self.path.unlink(missing_ok=True)
