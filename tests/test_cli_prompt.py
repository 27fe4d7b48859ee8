"""``tenuto bench prompt`` and ``tenuto run --semtoken``: what they print and write, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tenuto.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def tenuto(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="tenuto")


def test_a_prompt_is_merged_and_the_conversation_goes_on(tiny_language: Path, tmp_path: Path) -> None:
    text = tmp_path / "question.txt"
    text.write_text("What has been read need not be read again. " * 12)
    said = tenuto("run", "--model", tiny_language, "--prompt-file", text, "--max-tokens", 4, "--semtoken", "ratio=0.5")
    assert said.exit_code == 0, said.stderr
    saved = float(said.stdout.split("MiB (")[1].split("%")[0])
    assert 35 < saved < 51
    both = tenuto(
        "run", "--model", tiny_language, "--prompt-file", text, "--max-tokens", 4, "--semtoken", "ratio=0.5",
        "--policy", "snapkv:window=8", "--budget", "keep=0.25",
    )  # fmt: skip
    assert both.exit_code == 0, both.stderr
    assert float(both.stdout.split("MiB (")[1].split("%")[0]) > 55


def test_semtoken_is_for_words_and_its_settings_are_checked(tiny_language: Path) -> None:
    wrong = tenuto("run", "--model", tiny_language, "--semtoken", "ratoi=0.5")
    assert wrong.exit_code == 2 and "Did you mean 'ratio'" in wrong.stderr
    images = tenuto("run", "--semtoken", "ratio=0.5")
    unknown = tenuto("run", "--model", tiny_language, "--semtokn", "ratio=0.5")
    assert unknown.exit_code == 2 and "No such option" in unknown.stderr
    assert images.exit_code == 2 and "--method does not go with" in images.stderr


@pytest.mark.slow
def test_prompts_are_measured(tiny_language: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--context", 1500, "--examples", 1, "--kinds", "logs", "--ratio", "0.75,0.5", "--semtoken", "layer=0")
    result = tenuto("bench", "prompt", "--model", tiny_language, *given, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["ratio"], row["way"]) for row in rows[:2]] == [(0.75, "none"), (0.75, "semtoken")]
    assert len(rows) == 14 == len(list(out.glob("prompt-*.json")))
    assert tenuto("report", out).exit_code == 0
    page = (out / "tenuto-report.html").read_text(encoding="utf-8")
    assert "tokens in one entry" in page and page.count("The first example at ratio") == 2
    table = tenuto("bench", "prompt", "--model", tiny_language, *given)
    assert table.exit_code == 0 and "drop_surprise" in table.stdout
    unknown = tenuto("bench", "prompt", "--model", tiny_language, "--kinds", "logz")
    assert unknown.exit_code == 2 and "Did you mean 'logs'" in unknown.stderr
