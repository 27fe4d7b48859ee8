"""PNG files of a Run, carried inside the page as they are, byte for byte."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from tenuto.errors import InputError
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
    """The picture ``kind`` ("grid" or "difference") that a Run names.

    Raises:
        InputError: the name leads out of the folder, or the file is not a PNG or cannot be read.
    """
    name = run.images.get(kind)
    if not name:
        return Picture(missing="The record names no such picture.")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"The record of {run.policy!r} names a picture outside its folder: {name!r}. Remove the record."
        )
    if not path.is_file():
        return Picture(missing=f"{name} is not in the folder.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). Make it readable or remove it.") from error
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or b"IEND" not in data[-12:]:
        raise InputError(f"{path} is not a complete PNG picture. Run the benchmark again or remove the file.")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return Picture(uri=f"data:image/png;base64,{base64.b64encode(data).decode()}", width=width, height=height)
