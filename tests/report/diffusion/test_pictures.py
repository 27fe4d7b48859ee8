from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "loop/../../x.png"])
def test_a_picture_outside_the_folder_is_not_shown(tmp_path: Path, make: Callable[..., Run], name: str) -> None:
    picture = load_picture(tmp_path, make("a", images={"grid": name}), "grid")
    assert "outside its folder" in picture.missing and not picture.uri


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, ".", "folder"])
def test_a_name_that_no_file_has_is_said_to_be_missing(tmp_path: Path, make: Callable[..., Run], name: str) -> None:
    (tmp_path / "folder").mkdir()
    picture = load_picture(tmp_path, make("a", images={"grid": name}), "grid")
    assert picture.missing and len(picture.missing) < 200 and not picture.uri


@pytest.mark.parametrize("cut", [0, 7, 40, -5])
def test_a_damaged_picture_is_not_shown(example: tuple[Path, list[bytes]], make: Callable[..., Run], cut: int) -> None:
    path = example[0] / "0-grid.png"
    path.write_bytes(path.read_bytes()[:cut])
    picture = load_picture(example[0], make("a", images={"grid": path.name}), "grid")
    assert "not a complete PNG" in picture.missing and not picture.uri
