"""The page about shortened prompts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.report.prompt_page import SHOWN, Mark, coloured, quality, write_prompt_page

PIECES = [("one <b>", 1), (" two three", 2), (" gone", 0), (" many 🦉", 9)]


def test_text_is_coloured_by_span_and_size_and_escaped() -> None:
    html = str(coloured(PIECES))
    assert "one &lt;b&gt;" in html
    assert re.findall(r'title="(\d+) tokens in one entry"', html) == ["2", "9"]
    shades = [int(number) for number in re.findall(r"(\d+)%, transparent", html)]
    assert shades[0] < shades[1]
    assert html.count("dropped") == 2
    assert "and 3 pieces more" in str(coloured([("x", 1)] * (SHOWN + 3)))


def test_quality_has_one_line_per_way_and_a_point_per_ratio() -> None:
    ways = ("semtoken", "random")
    marks = [Mark(way=way, ratio=r, extra=1 - r, interval=(0.1, 0.9)) for way in ways for r in (0.33, 0.5, 0.75)]
    html = str(quality(marks, "logs"))
    assert html.count('class="curve') == 2
    assert html.count("nats per token") == 6
    assert str(quality([], "logs")) == ""


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = write_prompt_page(tmp_path / "prompt.html", {"logs": PIECES}, {"logs": [Mark(way="a", ratio=0.5, extra=0.1)]})
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "many 🦉" in text
    assert "http" not in text
    with pytest.raises(InputError, match="cannot be written"):
        write_prompt_page(tmp_path / "none" / "prompt.html", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["prompt.html"]
