"""The KV benchmark on a tiny model: rows, pairs, resuming, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenuto import catalog
from tenuto.bench.kv import bench as kv_bench
from tenuto.bench.kv.job import KVJob
from tenuto.bench.reading import CacheEntry
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError
from tenuto.records.kv import read_kv_runs
from tenuto.report import write_report
from tenuto.zoo import named as zoo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
JOB = KVJob(contexts=(300, 400), tasks=("niah_single", "multi_turn", "perplexity"), examples=2, decoded=2)
ROWS = [
    CacheEntry(policy=catalog.parse("knorm", "kv"), budget=MemoryBudget.keep(0.5)),
    CacheEntry(policy=catalog.parse("knorm+kivi:bits=4,group=8,residual=16", "kv"), budget=MemoryBudget.keep(0.5)),
]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never stops by itself."""
    monkeypatch.setattr("tenuto.bench.likelihood.CONTINUED", 4)
    monkeypatch.setattr("tenuto.texts.needles.DIGITS", 2)


def test_rows_and_report(tiny_language: Path, tmp_path: Path) -> None:
    job = replace(JOB, contexts=(700, 800))
    runs = kv_bench.bench(str(tiny_language), ROWS, tmp_path, job, command="tenuto bench kv")
    assert [(run.policy, run.budget, run.context) for run in runs] == [
        (policy, budget, context)
        for context in (700, 800)
        for policy, budget in (("none", "full"), ("knorm", "keep=0.5"), (ROWS[1].name, "keep=0.5"))
    ]
    assert sorted(run.policy for run in read_kv_runs(tmp_path)) == sorted(run.policy for run in runs)
    base, half, coded = runs[:3]
    assert base.bytes_held == base.bytes_full
    assert 0.45 < (half.held or 0) < 0.56
    assert (coded.held or 1) < 0.7 * (half.held or 0)
    for run in runs:
        assert list(run.scores) == ["niah_single", "multi_turn", "perplexity"]
        assert all(score.count == 2 for score in run.scores.values())
        assert run.ttft is not None
        assert len(run.ttft.seconds) == 6
        assert (run.decode_cpu_ms or 0) > 0
    assert not (tmp_path / "unfinished").exists()
    assert "knorm+kivi" in write_report(tmp_path).path.read_text()
    with pytest.raises(InputError, match=r"another job \(examples: 2, now 3\)"):
        kv_bench.bench(str(tiny_language), ROWS, tmp_path, replace(job, examples=3))
    with pytest.raises(InputError, match=r"another job \(tasks: niah_single, multi_turn, perplexity, now passkey\)"):
        kv_bench.bench(str(tiny_language), ROWS, tmp_path, replace(job, tasks=("passkey",)))
    with pytest.raises(InputError, match=r"another job \(every: None, now 8\)"):
        kv_bench.bench(str(tiny_language), [replace(ROWS[0], every=8)], tmp_path, job)


def test_a_run_that_was_cut_off_goes_on(tiny_language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(JOB, contexts=(60,), tasks=("perplexity",), examples=3)
    whole, measured = kv_bench._round, []

    def counted(*args: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(args[3])
        return whole(*args)

    monkeypatch.setattr(kv_bench, "_round", counted)
    with pytest.raises(KeyboardInterrupt):
        kv_bench.bench(str(tiny_language), ROWS[:1], tmp_path, job)
    assert read_kv_runs(tmp_path) == []
    with pytest.raises(InputError, match="unfinished benchmark of another job"):
        kv_bench.bench(str(tiny_language), ROWS[:1], tmp_path, replace(job, seed=5))
    measured.clear()
    runs = kv_bench.bench(str(tiny_language), ROWS[:1], tmp_path, job)
    assert measured == [(60, "perplexity", 2)]
    assert runs[1].scores["perplexity"].count == 3


def test_the_question_may_be_inside(tiny_language: Path, tmp_path: Path) -> None:
    job = replace(JOB, contexts=(600,), tasks=("niah_single",), examples=1)
    inside = kv_bench.bench(str(tiny_language), ROWS[:1], tmp_path / "in", replace(job, question="inside"))
    after = kv_bench.bench(str(tiny_language), ROWS[:1], tmp_path / "after", job)
    assert inside[0].bytes_full > after[0].bytes_full


def test_what_cannot_be(tiny_language: Path, tmp_path: Path) -> None:
    model, out = str(tiny_language), tmp_path / "out"
    with pytest.raises(InputError, match="knorm at keep=0.5 was given twice"):
        kv_bench.bench(model, [ROWS[0], ROWS[0]], out, JOB)
    with pytest.raises(InputError, match="was made for 2048"):
        kv_bench.bench(model, ROWS, out, replace(JOB, contexts=(2000,)))
    small = CacheEntry(policy=catalog.parse("snapkv", "kv"), budget=MemoryBudget.tokens(8))
    with pytest.raises(InputError, match="keeps at least 32"):
        kv_bench.bench(model, [small], out, JOB)
    with pytest.raises(InputError, match="too short"):
        kv_bench.bench(model, ROWS[:1], out, replace(JOB, contexts=(5,), tasks=("niah_single",)))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        kv_bench.bench(model, ROWS, tmp_path / "file" / "in", JOB)


def test_the_demonstration_is_of_rows_that_exist() -> None:
    assert len(kv_bench.demo_rows()) == 5
    assert zoo.MODELS["smollm2"].family == "kv"
