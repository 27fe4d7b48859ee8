"""Every bench that is stopped says how to go on, and goes on to the records of one that was not stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tenuto.cli import main
from tenuto.measure.resume import Unfinished
from tenuto.train.tokens import Tokens
from tenuto.train.training import Training, train

pytestmark = pytest.mark.slow
TIMES = (
    "timing", "speedup", "peak_bytes", "ttft", "decode", "seconds", "_s", "stall", "range", "cpu", "withheld", "low",
    "high",
)  # fmt: skip
"""In the names of fields that are measured by the clock, or follow from them."""


def tenuto(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def untimed(value: Any) -> Any:
    """A record without what is another number each time."""
    if isinstance(value, dict):
        kept = {name: untimed(item) for name, item in value.items() if not any(part in name for part in TIMES)}
        return {name: item for name, item in kept.items() if name != "command"}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def records(folder: Path) -> dict[str, Any]:
    return {path.name: untimed(json.loads(path.read_text())) for path in folder.glob("*.json")}


def stop_after(patch: pytest.MonkeyPatch, pieces: int) -> None:
    """As Ctrl-C does, once so many pieces are kept."""
    put, kept = Unfinished.put, list[int]()

    def stopping(unfinished: Unfinished, *given: Any) -> None:
        put(unfinished, *given)
        kept.append(1)
        if len(kept) == pieces:
            raise KeyboardInterrupt

    patch.setattr(Unfinished, "put", stopping)


def words_of(family: str, tiny_model: Path, tiny_language: Path) -> list[Any]:
    words = {
        "diffusion": ["--model", tiny_model, "--policies", "every_n", "--steps", 4, "--samples", 10],
        "kv": ["--model", tiny_language, "--policies", "knorm", "--budget", "keep=0.5", "--context", 64,
               "--tasks", "perplexity", "--examples", 3],
        "prompt": ["--model", tiny_language, "--kinds", "logs", "--context", 500, "--examples", 2],
        "reuse": ["--model", tiny_language, "--store", "host:?max=1GiB", "--store", "host:?max=1GiB&codec=int8",
                  "--context", 130, "--repeats", 1],
        "shards": ["--model", tiny_language, "--ranks", 1, "--context", 40, "--tokens", 4, "--codec", "raw,int8"],
    }  # fmt: skip
    return words[family]


@pytest.mark.parametrize("family", ["diffusion", "kv", "prompt", "reuse", "shards"])
@pytest.mark.usefixtures("offline", "one_thread")
def test_stopped_and_resumed(family: str, tiny_model: Path, tiny_language: Path, tmp_path: Path) -> None:
    words = ["bench", family, *words_of(family, tiny_model, tiny_language), "--threads", 1]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert tenuto(*words, "--out", whole).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2 if family != "prompt" else 1)
        stopped = tenuto(*words, "--out", out)
    assert stopped.exit_code == 130, stopped.output
    assert f"Stopped. Go on with: tenuto bench {family} --resume {out}" in stopped.output
    assert records(out) == {}
    other = tenuto("bench", family, "--resume", out, "--threads", 9)
    assert other.exit_code == 2 and "another job (threads: '1', now '9')" in other.output
    wrong = tenuto("bench", "kv" if family != "kv" else "reuse", "--resume", out)
    assert wrong.exit_code == 2 and f"Go on with: tenuto bench {family} --resume" in wrong.output
    resumed = tenuto("bench", family, "--resume", out)
    assert resumed.exit_code == 0, resumed.output
    assert records(out) == records(whole) != {}
    assert not (out / "unfinished").exists()
    again = tenuto("bench", family, "--resume", out)
    assert again.exit_code == 2 and "holds no benchmark that was stopped" in again.output


@pytest.mark.usefixtures("one_thread")
def test_attentions_go_on_with_the_model_that_is_missing(
    little_text: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("mha", "window")]
    for attention, folder in zip(("mha", "window:window=16"), folders, strict=True):
        train(Training(attention=attention, seed=0, steps=2, size="tiny"), folder, little_text)
    monkeypatch.setattr("tenuto.bench.attention.bench.prepare", lambda: little_text)
    few = ["--windows", 1, "--rows", 1, "--context", 64, "--repeats", 1, "--threads", 1]
    words = ["bench", "attention", *folders, *few]
    assert tenuto(*words, "--out", tmp_path / "whole").exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        stopped = tenuto(*words, "--out", tmp_path / "out")
    assert "tenuto bench attention --resume" in stopped.output and records(tmp_path / "out") == {}
    resumed = tenuto("bench", "attention", "--resume", tmp_path / "out")
    assert resumed.exit_code == 0, resumed.output
    assert records(tmp_path / "out") == records(tmp_path / "whole") != {}


def test_former_names_work_and_say_so() -> None:
    for group, former, now in (("bench", "moe", "shards"), ("bench", "store", "reuse"), ("calibrate", "moe", "shards")):
        told = tenuto(group, former, "--help")
        assert told.exit_code == 0 and f"note: {former} is called {now} now" in told.output
        assert former not in tenuto(group, "--help").output.split()
