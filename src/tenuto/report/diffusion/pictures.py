"""PNG files of a Run, carried inside the page as they are, byte for byte."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from tenuto.records.diffusion import Run

__all__ = ["Picture", "load_picture"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture as a data URI with its size in pixels, or, where there is none, the reason in ``missing``."""

    uri: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""


def load_picture(folder: Path, run: Run, kind: str) -> Picture:
    """The picture ``kind`` ("grid" or "difference") that a Run names, or why it cannot be shown."""
    name = run.images.get(kind)
    if not name:
        return Picture(missing="The record names no such picture.")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            return Picture(missing=f"The record names a picture outside its folder: {name[:80]!r}.")
        if not path.is_file():
            return Picture(missing=f"{name[:80]} is not in the folder.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return Picture(missing=f"{name[:80]!r} cannot be read ({reason}).")
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or b"IEND" not in data[-12:]:
        return Picture(missing=f"{name[:80]} is not a complete PNG picture.")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return Picture(uri=f"data:image/png;base64,{base64.b64encode(data).decode()}", width=width, height=height)
