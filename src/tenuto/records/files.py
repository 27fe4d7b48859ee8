"""Records on disk: one frozen dataclass, one JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from tenuto.errors import InputError

__all__ = ["file_name", "read_record", "record_files", "write_record"]

Record = TypeVar("Record")


def file_name(policy: str) -> str:
    """A policy's text as the stem of a file name."""
    return "".join(c if c.isalnum() or c in "._-=" else "_" for c in policy)


def record_files(folder: Path, begins: str = "") -> list[Path]:
    """The JSON files of a folder whose names begin so, sorted.

    Raises:
        InputError: the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the --out folder of a benchmark.")
    return sorted(folder.glob(f"{begins}*.json"))


def write_record(record: Any, path: Path) -> Path:
    """Write a dataclass as JSON, beside and renamed, so that a reader never sees half of it."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(asdict(record), indent=1, allow_nan=False))
    os.replace(temporary, path)
    return path


def read_record(path: Path, kind: type[Record], make: Callable[[dict[str, Any]], Record]) -> Record:
    """Read one record; ``make`` builds it from the parsed JSON.

    Raises:
        InputError: it is not such a record, or another version of Tenuto wrote it.
    """
    try:
        raw = json.loads(path.read_text())
        known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
        if unknown := set(raw) - known:
            raise InputError(
                f"{path} has unknown fields {sorted(unknown)}: it was written by another version of Tenuto."
            )
        return make(raw)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} is not a {kind.__name__} record ({error}). Run the benchmark again or remove the file."
        ) from error
