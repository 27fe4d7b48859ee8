"""The records of a folder, of all families, and what in it could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenuto.errors import InputError, closest
from tenuto.records import attention, diffusion, kv, prompt, reuse, shards
from tenuto.records.files import Kind, raw_record, read_record, record_files

__all__ = ["KINDS", "Records", "read_folder"]

KINDS: dict[str, Kind[Any]] = {
    kind.family: kind for kind in (diffusion.KIND, kv.KIND, attention.KIND, prompt.KIND, reuse.KIND, shards.KIND)
}
"""By family, in the order of a report."""


@dataclass(slots=True)
class Records:
    """What a folder holds.

    Attributes:
        by_family: records in their family's order; families without any are left out.
        refused: a line for every file that is no record.
    """

    by_family: dict[str, list[Any]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def read_folder(folder: Path) -> Records:
    """Read all records of a folder. One that is damaged is left out, and said so in ``refused``.

    Raises:
        InputError: the folder does not exist.
    """
    found = Records()
    for path in record_files(folder):
        try:
            raw = raw_record(path)
            if raw["family"] not in KINDS:
                hint = closest(raw["family"][:80], KINDS)
                raise InputError(f"{path} is of an unknown family {raw['family'][:80]!r}.{hint}")
            record = read_record(path, raw, KINDS[raw["family"]])
        except InputError as error:
            found.refused.append(str(error))
            continue
        found.by_family.setdefault(raw["family"], []).append(record)
    for family, runs in found.by_family.items():
        runs.sort(key=KINDS[family].order)
    return found
