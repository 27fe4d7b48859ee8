"""A place that cannot be written is refused, and nothing is made by asking."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.measure.folders import check_file, check_folder


def test_asking_makes_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    check_file(tmp_path / "c" / "p.png", ".png")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"Cannot write in .*file.deeper .*Give another --out"):
        check_folder(tmp_path / "file" / "deeper")


def test_other_endings_and_folders(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("p.jpg", "p", "folder.png"):
        with pytest.raises(InputError, match=r"Give --out NAME.png"):
            check_file(tmp_path / name, ".png")
