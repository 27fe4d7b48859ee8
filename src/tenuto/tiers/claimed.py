"""Whose a folder is: a store says in a file that it keeps pages there, and stays out of folders that others use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tenuto.errors import InputError
from tenuto.tiers import segment

__all__ = ["MARK", "claim", "make_private"]

MARK = "tenuto-store"
WORDS = b"Tenuto keeps pages of keys and values in this folder (docs/stores.md); tenuto store purge removes them.\n"


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are not there, for their owner only.

    Raises:
        OSError: it cannot be made, or is none.
    """
    for each in [*reversed(folder.parents), folder]:
        if not each.is_dir():
            each.mkdir(0o700, exist_ok=True)


def claim(folder: Path, foreign: bool) -> None:
    """Make the folder a store's, if it is not yet: empty, with a store's files only, or ``foreign`` ones allowed.

    Raises:
        InputError: it holds files of others.
        OSError: it cannot be made or read.
    """
    make_private(folder)
    mark = folder / MARK
    if mark.is_file():
        return
    strangers = [] if foreign else sorted(name for name in os.listdir(folder) if not _own(folder / name))
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise InputError(
            f"{folder} holds files that are no store's ({shown}). Give a folder of its own, or ?foreign=true to keep "
            "pages among them."
        )
    with suppress(OSError), segment.opened(mark, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:  # may be read only
        file.write(WORDS)


def _own(path: Path) -> bool:
    return path.name in ("lock", MARK) or segment.ours(path)
