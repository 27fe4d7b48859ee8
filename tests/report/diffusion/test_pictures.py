from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.records.diffusion import Run
from tenuto.report.diffusion.pictures import load_picture


def test_bytes_and_size_are_the_files(example: tuple[Path, list[bytes]], make: Callable[..., Run]) -> None:
    folder, written = example
    picture = load_picture(folder, make("a", images={"grid": "0-grid.png"}), "grid")
    assert base64.b64decode(picture.uri.partition(",")[2]) == written[0]
    assert (picture.width, picture.height, picture.missing) == (64, 48, "")


def test_absent_pictures_say_why(tmp_path: Path, make: Callable[..., Run]) -> None:
    run = make("a", images={"grid": "gone.png"})
    assert load_picture(tmp_path, run, "grid").missing == "gone.png is not in the folder."
    assert load_picture(tmp_path, run, "difference").missing == "The record names no such picture."


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_a_picture_outside_the_folder_is_refused(tmp_path: Path, make: Callable[..., Run], name: str) -> None:
    with pytest.raises(InputError, match="outside its folder"):
        load_picture(tmp_path, make("a", images={"grid": name}), "grid")


@pytest.mark.parametrize("cut", [0, 7, 40, -5])
def test_a_damaged_picture_is_refused(example: tuple[Path, list[bytes]], make: Callable[..., Run], cut: int) -> None:
    path = example[0] / "0-grid.png"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="not a complete PNG"):
        load_picture(example[0], make("a", images={"grid": path.name}), "grid")
