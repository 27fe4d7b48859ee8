"""The part of the page about shortened prompts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenuto.errors import InputError
from tenuto.records.prompt import PromptRun, read_prompt_runs, write_prompt_run
from tenuto.report import write_report
from tenuto.report.prompt.check import check_prompt
from tenuto.report.prompt.page import SHOWN, coloured, prompt_part, quality
from tenuto.report.prompt.table import COLUMNS, prompt_rows

PIECES = [("one <b>", 1), (" two three", 2), (" gone", 0), (" many 🦉", 9)]


def made(way: str, ratio: float = 0.5, **changes: Any) -> PromptRun:
    complete: dict[str, Any] = {
        "kind": "logs", "ratio": ratio, "way": way, "method": f"{way}:layer=2", "context": 2048, "examples": 6,
        "held": ratio, "size": ratio, "loss": 2.0 - ratio, "extra": 1.0 - ratio, "extra_interval": (0.1, 0.9),
        "behind": 0.2, "behind_interval": (-0.1, 0.5), "right": 0.9, "right_behind": 0.0,
        "right_behind_interval": None, "answered": 0.75, "answered_behind": 0.0, "answered_behind_interval": None,
        "seconds": 1.5, "speedup": 2.0, "model": "bundled:smollm2", "fingerprint": "f", "device": "CPU",
        "versions": {"tenuto": "1"}, "settings": {"seed": 0}, "command": "tenuto bench prompt",
        "beside": "semtoken",
    }  # fmt: skip
    return PromptRun(**{**complete, **changes})


RUNS = [
    made("none", 0.5, held=1.0, extra=0.0, extra_interval=(0.0, 0.0)),
    *(made("semtoken", ratio, pieces=PIECES, behind=0.0) for ratio in (0.75, 0.5)),
    made("random", 0.5, behind_interval=(0.1, 0.5)),
]


def test_text_is_coloured_by_span_and_size_and_escaped() -> None:
    html = str(coloured(PIECES))
    assert "one &lt;b&gt;" in html
    assert re.findall(r'title="(\d+) tokens in one entry"', html) == ["2", "9"]
    shades = [int(number) for number in re.findall(r"(\d+)%, transparent", html)]
    assert shades[0] < shades[1]
    assert html.count("dropped") == 2
    assert "and 3 pieces more" in str(coloured([("x", 1)] * (SHOWN + 3)))


def test_quality_has_one_line_per_way_and_a_point_per_ratio() -> None:
    ways = ["semtoken", "random"]
    runs = [made(way, ratio) for way in ways for ratio in (0.33, 0.5, 0.75)]
    html = str(quality(runs, ways, "logs"))
    assert html.count('class="curve') == 2
    assert html.count("nats per token") == 6
    assert str(quality([], ways, "logs")) == ""


def test_a_worse_difference_stands_out() -> None:
    cells = {
        (row.run.way, column.title): cell
        for row in prompt_rows(RUNS)
        for column, cell in zip(COLUMNS, row.cells, strict=True)
    }
    assert cells["random", "Beyond method"].worse
    assert not cells["semtoken", "Beyond method"].worse
    assert not prompt_rows([made("random")])[0].cells[4].worse
    assert cells["none", "Beyond none"].note == "reference"


def test_records_are_read_back_and_make_a_page(tmp_path: Path) -> None:
    for run in RUNS:
        write_prompt_run(run, tmp_path)
    assert read_prompt_runs(tmp_path) == [RUNS[1], RUNS[0], RUNS[2], RUNS[3]]
    text = write_report(tmp_path).path.read_text(encoding="utf-8")
    assert "many 🦉" in text and "logs, 2,048 tokens" in text and "tenuto bench prompt" in text
    assert text.count("The first example at ratio") == 2
    assert len(prompt_part(RUNS, tmp_path)["groups"]) == 1


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy 'random' is damaged: held is '7'"):
        check_prompt(replace(RUNS[3], held=7))
    path = write_prompt_run(RUNS[0], tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "other": 1}))
    with pytest.raises(InputError, match="unknown fields"):
        write_report(tmp_path)
