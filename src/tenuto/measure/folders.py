"""Whether a place can be written, asked before any work. Nothing is made until there is something to write."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tenuto.errors import InputError

__all__ = ["check_file", "check_folder"]


def check_folder(folder: Path) -> None:
    """Try to write in a folder, or, if it does not exist yet, in the nearest folder above it that does.

    Raises:
        InputError: it cannot be written.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"Cannot write in {folder} ({error.strerror or error}). Give another --out.") from error


def check_file(path: Path, suffix: str) -> None:
    """Try to write in the folder of a file, likewise.

    Raises:
        InputError: the name does not end in ``suffix``, is a folder's, or its folder cannot be written.
    """
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"{path} is not a file name that can be written here. Give --out NAME{suffix}.")
    check_folder(path.parent)
