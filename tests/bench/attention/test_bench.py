from __future__ import annotations

from pathlib import Path

import pytest

from tenuto.bench.attention import bench as module
from tenuto.bench.attention.bench import AttentionJob, bench
from tenuto.errors import InputError, ModelError
from tenuto.records.attention import read_attention_runs
from tenuto.train.tokens import Tokens
from tenuto.train.training import Training, train

pytestmark = pytest.mark.training

JOB = AttentionJob(windows=2, rows=2, contexts=(40, 80), repeats=2)


@pytest.fixture
def trained(little_text: Tokens, tmp_path: Path) -> list[Path]:
    folders = []
    for attention, seed in (("mha", 0), ("mha", 1), ("window:window=16", 0)):
        folder = tmp_path / f"{attention.partition(':')[0]}-{seed}"
        train(Training(attention=attention, seed=seed, steps=2, size="tiny"), folder, little_text)
        folders.append(folder)
    return folders


@pytest.mark.usefixtures("one_thread")
def test_models_become_records_once(
    trained: list[Path], little_text: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    runs = bench(trained, out, JOB, text=little_text, command="c")
    assert [(run.attention, run.seed, len(run.decode)) for run in runs] == [
        ("mha", 0, 2),
        ("mha", 1, 0),
        ("window:window=16", 0, 2),
    ]
    assert all([bits.context for bits in run.bits] == [64, 128, 256] for run in runs)
    assert len({bits.bytes for run in runs for bits in run.bits}) == 1
    assert runs[0].bits != runs[1].bits and len(runs[0].recall) == 2 * (1 + 2 + 4)
    asked = [[(length, distance) for length, distance, _ in run.recall] for run in runs]
    assert asked[0] == asked[1] == asked[2], "every model is asked the same"
    monkeypatch.setattr(module, "_measure", None)
    monkeypatch.setattr(module, "decoding", None)
    assert bench(trained, out, JOB, text=little_text) == runs == read_attention_runs(out)
    with pytest.raises(InputError, match="another job: windows is 2 there, now 3"):
        bench(trained, out, AttentionJob(windows=3, rows=2), text=little_text)


def test_what_cannot_be_compared_is_refused(trained: list[Path], little_text: Tokens, tmp_path: Path) -> None:
    train(Training(attention="mqa", steps=1, size="tiny"), tmp_path / "other", little_text)
    with pytest.raises(InputError, match="steps=1, .* with steps=2"):
        bench([*trained, tmp_path / "other"], tmp_path / "out", JOB, text=little_text)
    with pytest.raises(InputError, match="given twice"):
        bench([trained[0], trained[0]], tmp_path / "out", JOB, text=little_text)
    with pytest.raises(ModelError, match=r"training\.json"):
        bench([tmp_path], tmp_path / "out", JOB, text=little_text)
    other = Tokens(
        tokenizer=little_text.tokenizer, train=little_text.train, held=little_text.held, digest="x", bible=False
    )
    with pytest.raises(InputError, match="another|installed here is x"):
        bench(trained, tmp_path / "out", JOB, text=other)
    assert not (tmp_path / "out").exists()
