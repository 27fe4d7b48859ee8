"""A few pictures under one policy: the file, and the sentence about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import tenuto
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.single import draw, read_labels
from tenuto.errors import CalibrationError, InputError

pytestmark = pytest.mark.usefixtures("offline")
JOB = Job(steps=4, samples=3)


def test_with_and_without_a_policy(tiny_model: Path, tmp_path: Path) -> None:
    plain = draw(str(tiny_model), None, [0, 3, 3], JOB, out=tmp_path / "plain.png")
    assert plain == f"{tmp_path / 'plain.png'}: 3 pictures, 4 denoising steps, nothing cached."
    cached = draw(str(tiny_model), tenuto.EveryN(), [0, 3, 3], JOB, out=tmp_path / "cached.png")
    assert "50.0% of block executions not computed, 49." in cached
    with Image.open(tmp_path / "plain.png") as a, Image.open(tmp_path / "cached.png") as b:
        assert a.size == b.size == (3 * 56, 56)
        assert a.tobytes() != b.tobytes()


def test_labels() -> None:
    assert read_labels("0, 7,3") == [0, 7, 3]
    with pytest.raises(InputError, match="labels=0,x is not a list"):
        read_labels("0,x")


def test_what_cannot_be_drawn(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    with pytest.raises(InputError, match=r"label 1000 is not allowed: .* has the classes 0 to 999"):
        draw(str(tiny_model), None, [1, 1000, -1], JOB, out=out)
    with pytest.raises(CalibrationError, match="tenuto calibrate teacache"):
        draw(str(tiny_model), tenuto.TeaCache(), [1], JOB, out=out)
    with pytest.raises(InputError, match=r"Give --out NAME.png"):
        draw(str(tiny_model), None, [1], JOB, out=tmp_path / "p.gif")
    assert not list(tmp_path.iterdir())
