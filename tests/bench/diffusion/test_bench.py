"""The benchmark on a tiny pipeline: every row measured, paired and honest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from PIL import Image

import tenuto
from tenuto import catalog
from tenuto.bench.diffusion.bench import _matching_steps, bench, demo_policies
from tenuto.bench.diffusion.contender import Contender
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.rows import ImageEntry, cached
from tenuto.bench.diffusion.scores import psnr
from tenuto.errors import AttachError, InputError, ModelError
from tenuto.records.diffusion import Run, read_runs
from tenuto.report import write_report
from tenuto.telemetry import Telemetry
from tenuto.zoo.pipelines import ImageModel, load_model

pytestmark = pytest.mark.slow

JOB = Job(steps=8, samples=12, guidance=1.5, seed=2)
POLICIES = [
    tenuto.EveryN(),
    tenuto.EveryN(n=4),
    tenuto.FirstBlock(threshold=0.0),
    tenuto.FastCache(rtol=10.0, fit="profile"),
]
Measured = tuple[Path, dict[str, Run]]


@pytest.fixture(scope="module")
def measured(tiny_model: Path, offline: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    out = tmp_path_factory.mktemp("out") / "bench"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenuto.bench.diffusion.fitting.RUNS", 6)
        runs = bench(str(tiny_model), POLICIES, out, JOB, device="cpu", command="tenuto bench")
    yield out, {run.policy: run for run in runs}


def test_records_are_what_was_returned(measured: Measured) -> None:
    out, runs = measured
    assert list(runs)[:5] == [
        "none",
        "every_n",
        "every_n:n=4",
        "first_block:threshold=0.0",
        "fastcache:rtol=10.0,fit=profile",
    ]
    assert {run.policy: run for run in read_runs(out)} == runs
    assert not list(out.rglob("*.tmp"))
    json.dumps([run.row() for run in runs.values()], allow_nan=False)


def test_what_all_rows_share(measured: Measured, tiny_model: Path) -> None:
    for run in measured[1].values():
        assert run.settings == {
            "steps": 8, "samples": 12, "guidance": 1.5, "seed": 2, "batch": 3, "sampler": "DDIMScheduler"
        }  # fmt: skip
        assert (run.model, run.family, run.command) == (str(tiny_model), "diffusion", "tenuto bench")
        assert run.fid is not None
        assert run.fid > 0
        assert 0 <= (run.class_accuracy or 0) <= 1
        assert run.peak_bytes is not None
        assert run.timing is not None
        assert len(run.timing.seconds) == len(run.timing.baseline_seconds) == 5


def test_the_baseline_claims_nothing(measured: Measured) -> None:
    run = measured[1]["none"]
    assert (run.speedup, run.flops_speedup, run.psnr, run.ssim, run.reuse_ratio) == (None, None, None, None, 0.0)
    assert "difference" not in run.images


def test_reuse_is_counted_and_timed(measured: Measured) -> None:
    runs = measured[1]
    run = runs["every_n"]
    assert run.timing is not None
    assert run.speedup == median(run.timing.ratios)
    assert run.speedup_range == (min(run.timing.ratios), max(run.timing.ratios))
    assert run.timing.baseline_seconds == (runs["none"].timing or run.timing).seconds
    assert run.reuse_ratio == 0.5
    assert 1.8 < (run.flops_speedup or 0) < 2.0
    assert run.cache_bytes > 0
    assert [row[0] for row in run.decisions] == ["compute", "reuse"] * 4
    assert [row[0] for row in run.grid] == [0.0, 1.0] * 4
    assert (runs["every_n:n=4"].psnr or 0) < (run.psnr or 0) < 100
    low, high = run.psnr_interval or (0, 0)
    assert low < (run.psnr or 0) < high


def test_a_gate_that_never_opens_has_no_speedup(measured: Measured) -> None:
    run = measured[1]["first_block:threshold=0.0"]
    assert (run.speedup, run.speedup_range, run.flops_speedup, run.reuse_ratio) == (None, None, None, 0.0)
    assert "nothing was reused" in (run.withheld or "")
    assert run.psnr == 100.0


def test_a_policy_without_profile_is_calibrated(measured: Measured) -> None:
    out, runs = measured
    run = runs["fastcache:rtol=10.0,fit=profile"]
    assert run.calibration_seconds > 0
    assert run.reuse_ratio > 0
    assert runs["every_n"].calibration_seconds == 0
    assert [path.suffix for path in (out / "profiles").iterdir()] == [".safetensors"]


def test_fewer_steps_match_the_policies(measured: Measured) -> None:
    fewer = [run for name, run in measured[1].items() if name.startswith("fewer_steps:n=")]
    assert len(fewer) == 2
    for run in fewer:
        steps = int(run.policy.partition("=")[2])
        assert run.flops_speedup == 8 / steps
        assert run.reuse_ratio == 1 - steps / 8
        assert run.telemetry == {"denoiser_calls": steps * len(JOB.batches)}
        assert run.speedup is not None
        assert run.decisions == []


@pytest.mark.parametrize(
    ("speeds", "expected"), [([], []), ([2.0], [25]), ([1.25, 4.1, 2.0], [12, 40]), ([1.001], []), ([900.0], [1])]
)
def test_matching_steps(speeds: list[float], expected: list[int]) -> None:
    assert _matching_steps(50, speeds) == expected


def test_pictures_are_stored_and_differ(measured: Measured, tiny_model: Path) -> None:
    out, runs = measured
    stored = {}
    for name, run in runs.items():
        for kind, file in run.images.items():
            with Image.open(out / file) as image:
                assert image.size == (10 * 56, 2 * 56)
                stored[name, kind] = image.tobytes()
    assert stored["none", "grid"] == stored["first_block:threshold=0.0", "grid"]
    assert not any(stored["first_block:threshold=0.0", "difference"])
    assert len({stored[name, "grid"] for name in ("none", "every_n", "every_n:n=4")}) == 3
    assert any(stored["every_n", "difference"])


def test_quality_is_that_of_the_attached_pipeline(measured: Measured, tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    drawn = []
    for entry in (ImageEntry(name="none"), cached(tenuto.EveryN())):
        row = Contender(entry, model, JOB)
        for repeat in range(5):
            row.work(repeat)
        drawn.append(torch.cat(row.pictures))
    assert measured[1]["every_n"].psnr == pytest.approx(float(psnr(drawn[1], drawn[0]).mean()), abs=1e-6)


def test_another_job_does_not_mix_with_it(measured: Measured, tiny_model: Path) -> None:
    out, _ = measured
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(InputError, match=r"holds Runs of another job \(steps: 8, now 9\). Give another --out folder"):
        bench(str(tiny_model), POLICIES, out, Job(steps=9, samples=12, seed=2))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_nothing_is_left_where_work_never_began(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        bench("nowhere", POLICIES, tmp_path / "out", JOB)
    with pytest.raises(InputError, match="No policy was given"):
        bench(str(tiny_model), [], tmp_path / "out", JOB)
    with pytest.raises(InputError, match="given twice"):
        bench(str(tiny_model), [tenuto.EveryN(), tenuto.EveryN(n=2)], tmp_path / "out", JOB)
    with pytest.raises(InputError, match="1 to 1000 denoising steps"):
        bench(str(tiny_model), POLICIES, tmp_path / "out", Job(steps=1001))
    with pytest.raises(InputError, match="fewer=8 is not allowed: give 1 to 7"):
        bench(str(tiny_model), POLICIES, tmp_path / "out", JOB, fewer=[4, 8])
    assert not list(tmp_path.iterdir())


def test_one_picture_has_no_distance(tiny_model: Path, tmp_path: Path, offline: None) -> None:
    runs = bench(str(tiny_model), [tenuto.EveryN()], tmp_path, Job(steps=2, samples=1))
    assert [run.fid for run in runs] == [None] * len(runs)
    assert runs[1].psnr_interval is None
    assert len(runs[1].timing.seconds if runs[1].timing else ()) == 5


def test_the_demo_has_one_policy_of_every_method() -> None:
    classes = [type(policy) for policy in demo_policies()]
    assert classes == [info.cls for info in catalog.methods("diffusion").values()]


@contextmanager
def _refuses(model: ImageModel, rehearse: Callable[[], None]) -> Iterator[Telemetry]:
    rehearse()
    raise AttachError("ValueError: no context.")
    yield Telemetry()


def test_rivals_are_rows_like_the_others(tiny_model: Path, tmp_path: Path, offline: None) -> None:
    rivals = [
        replace(cached(tenuto.EveryN(n=4)), name="peer:n=4", versions={"peer": "1.2"}, optional=True),
        ImageEntry(name="peer:refused", attach=_refuses, optional=True),
    ]
    job = Job(steps=8, samples=4, batch=2)
    runs = {
        run.policy: run
        for run in bench(str(tiny_model), [tenuto.EveryN(n=4)], tmp_path, job, rivals=rivals, fewer=[3, 5])
    }
    assert list(runs) == ["none", "every_n:n=4", "peer:n=4", "peer:refused", "fewer_steps:n=3", "fewer_steps:n=5"]
    ours, peer, refused = runs["every_n:n=4"], runs["peer:n=4"], runs["peer:refused"]
    assert peer.versions == {**ours.versions, "peer": "1.2"}
    assert (peer.psnr, peer.reuse_ratio, peer.flops_speedup) == (ours.psnr, ours.reuse_ratio, ours.flops_speedup)
    assert refused.withheld == "it does not work on this model: ValueError: no context."
    assert (refused.timing, refused.psnr, refused.images) == (None, None, {})
    assert write_report(tmp_path, tmp_path / "report.html").path.is_file()


class _CutOffError(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on(tiny_model: Path, tmp_path: Path, offline: None) -> None:
    job, policies = Job(steps=4, samples=12), [tenuto.EveryN()]
    fresh = {run.policy: run for run in bench(str(tiny_model), policies, tmp_path / "fresh", job, fewer=[2])}
    out, worked = tmp_path / "out", Contender.work

    def cut_off(row: Contender, repeat: int) -> float:
        if repeat == 3 and row.name == "every_n":
            raise _CutOffError
        return worked(row, repeat)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contender, "work", cut_off)
        with pytest.raises(_CutOffError):
            bench(str(tiny_model), policies, out, job, fewer=[2])
    assert len(list((out / "unfinished").glob("*.safetensors"))) == 3
    with pytest.raises(InputError, match=r"unfinished benchmark of another job \(fewer: \[2\], now \[3\]\)"):
        bench(str(tiny_model), policies, out, job, fewer=[3])

    repeats: list[int] = []

    def watched(row: Contender, repeat: int) -> float:
        repeats.append(repeat)
        return worked(row, repeat)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contender, "work", watched)
        resumed = {run.policy: run for run in bench(str(tiny_model), policies, out, job, fewer=[2])}
    assert set(repeats) == {3, 4}
    assert not (out / "unfinished").exists()
    for name, run in resumed.items():
        untimed = dict.fromkeys(("timing", "speedup", "speedup_range", "peak_bytes"))
        assert replace(run, **untimed) == replace(fresh[name], **untimed)
        assert len((run.timing or pytest.fail(name)).seconds) == 5
        assert (out / run.images["grid"]).read_bytes() == (tmp_path / "fresh" / run.images["grid"]).read_bytes()
