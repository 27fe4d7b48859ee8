"""Records on disk: one frozen dataclass, one JSON file. A record says itself of which family it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tenuto.errors import InputError
from tenuto.records.build import build

__all__ = ["Kind", "file_name", "raw_record", "read_kind", "record_files", "write_record"]

Record = TypeVar("Record")

BEFORE = {"moe": "shards", "store": "reuse"}
"""Families that were called otherwise in the field ``task``, which version 0.1.0 wrote in place of ``family``."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind(Generic[Record]):
    """The records of one family.

    Attributes:
        family: its name.
        record: the class.
        order: what records of one folder are sorted by.
    """

    family: str
    record: type[Record]
    order: Callable[[Record], Any]


def file_name(policy: str) -> str:
    """A policy's text as the stem of a file name."""
    return "".join(c if c.isalnum() or c in "._-=" else "_" for c in policy)


def record_files(folder: Path) -> list[Path]:
    """What may be records in a folder, sorted: whatever is called ``*.json``.

    Raises:
        InputError: the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the --out folder of a benchmark.")
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def write_record(record: Any, path: Path) -> Path:
    """Write a dataclass as JSON, beside and renamed, so that a reader never sees half of it."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(asdict(record), indent=1, allow_nan=False))
    os.replace(temporary, path)
    return path


def raw_record(path: Path) -> dict[str, Any]:
    """A record as parsed JSON; one that was written before records had a ``family`` is given it.

    Raises:
        InputError: it is no file that can be read, no JSON object, or of no family that can be told.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file that can be read. Remove it, or point it to a record.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or remove it.") from error
    except RecursionError as error:
        raise InputError(f"{path} is no record: it is nested too deeply. Remove the file.") from error
    except ValueError as error:
        raise InputError(f"{path} is no record ({error}). Run the benchmark again or remove the file.") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} is no record: it is no JSON object. Run the benchmark again or remove the file.")
    if "family" not in raw and isinstance(raw.get("task"), str):
        task = raw.pop("task")
        raw["family"] = BEFORE.get(task, task)
    if not isinstance(raw.get("family"), str):
        raise InputError(f"{path} says no family: {_writer(raw)}. Run the benchmark again or remove the file.")
    return raw


def _writer(raw: dict[str, Any]) -> str:
    versions = raw.get("versions")
    version = versions.get("tenuto") if isinstance(versions, dict) else None
    return f"version {version} of Tenuto wrote it" if isinstance(version, str) else "it is no record of Tenuto's"


def read_record(path: Path, raw: dict[str, Any], kind: Kind[Record]) -> Record:
    """Build one record of what :func:`raw_record` gave.

    Raises:
        InputError: it is not such a record; the message says which version of Tenuto wrote it.
    """
    try:
        return build(kind.record, raw)
    except ValueError as error:
        raise InputError(
            f"{path} is not a record of the family {kind.family}: {error}; {_writer(raw)}. Run the benchmark again or "
            "remove the file."
        ) from error


def read_kind(folder: Path, kind: Kind[Record]) -> list[Record]:
    """All records of one family in a folder, in the family's order; those of other families are left alone.

    Raises:
        InputError: the folder does not exist, or a record is damaged.
    """
    found = [(path, raw_record(path)) for path in record_files(folder)]
    runs = [read_record(path, raw, kind) for path, raw in found if raw["family"] == kind.family]
    return sorted(runs, key=kind.order)
