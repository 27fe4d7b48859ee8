"""``tenuto train mini-lm`` and ``tenuto bench attention``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tenuto.bench.attention import bench as attention_bench
from tenuto.cli import main
from tenuto.train import training
from tenuto.train.tokens import Tokens

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def here(little_text: Tokens, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(training, "prepare", lambda: little_text)
    monkeypatch.setattr(attention_bench, "prepare", lambda: little_text)


def tenuto(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def train(out: Path, name: str, *more: object) -> Result:
    return tenuto("train", "mini-lm", "--attention", name, "--size", "tiny", "--steps", 2, "--out", out, *more)


def test_train_then_compare(tmp_path: Path) -> None:
    for name in ("mha", "mqa"):
        told = train(tmp_path / name, name)
        assert told.exit_code == 0, told.output
        assert f"{name}, seed 0: 4" in told.output and "2 steps of 256 tokens, last loss" in told.output
    args = [tmp_path / "mha", tmp_path / "mqa", "--windows", 1, "--rows", 1, "--context", "40,80", "--repeats", 1]
    told = tenuto("bench", "attention", *args, "--out", tmp_path / "runs")
    assert told.exit_code == 0, told.output
    assert "| attention | seeds | parameters | bits/byte at 64 |" in told.stdout
    assert "Bits per byte beyond mha" in told.stdout
    rows = json.loads(tenuto("bench", "attention", *args, "--out", tmp_path / "runs", "--json").stdout)
    assert [row["attention"] for row in rows] == ["mha", "mqa"]
    refused = tenuto("bench", "attention", *args, "--baseline", "gqa", "--out", tmp_path / "new")
    assert refused.exit_code == 2 and "'gqa' is in none of the folders" in refused.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("wndow", (), "Did you mean 'window'"),
        ("window:window=0", (), "window is 1 or more"),
        ("gqa:kv_heads=3", (), "does not divide the 4 heads"),
        ("mha", ("--size", "huge"), "size=huge is unknown"),
        ("mha", ("--steps", "0"), "--steps"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(
    tmp_path: Path, name: str, more: tuple[str, ...], said: str
) -> None:
    told = train(tmp_path / "out", name, *more)
    assert told.exit_code == 2 and said in told.stderr
    assert told.stderr.startswith("tenuto: error: ") and told.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_attention_is_refused(tmp_path: Path) -> None:
    assert train(tmp_path / "out", "mha").exit_code == 0
    told = train(tmp_path / "out", "mqa")
    assert told.exit_code == 2 and "holds a training of attention=mha, asked for was attention=mqa" in told.stderr
