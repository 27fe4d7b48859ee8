"""From the command line to files that ``attach`` takes, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import tenuto
from tenuto import catalog
from tenuto.bench.diffusion import bench as diffusion_bench
from tenuto.bench.diffusion.job import Job, labels_of
from tenuto.bench.diffusion.scores import psnr
from tenuto.calibration import Profile
from tenuto.cli import main
from tenuto.errors import InputError
from tenuto.records.diffusion import Run, read_runs
from tenuto.tuner import tune
from tenuto.zoo.pipelines import load_model

pytestmark = pytest.mark.usefixtures("offline")
STEPS, SAMPLES = 8, 4
SMALL = ("--steps", STEPS, "--samples", SAMPLES, "--trials", 3, "--device", "cpu")


def tuned(model: Path, out: Path, *args: object) -> Result:
    given = ["tune", "diffusion", "--model", model, "--out", out, *SMALL, *args]
    return CliRunner().invoke(main, [str(arg) for arg in given], prog_name="tenuto")


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.bench.diffusion.fitting.RUNS", 2)


@pytest.mark.slow
def test_a_calibrated_policy_that_attach_takes(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    args = ("--target", "flops_speedup>=1.2", "--seed", 3, "--policy", "teacache", "--json")
    result = tuned(tiny_model, out, *args)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert {"policy", "profile", "speedup", "psnr", "target", "met", "front"} <= set(found)
    assert found["met"]
    assert found["flops_speedup"] >= 1.2
    assert found["front"]
    assert (out / "policy.txt").read_text() == f"{found['policy']}\n"
    stored = json.loads((out / "tune.json").read_text())
    assert {key: stored[key] for key in found} == found
    assert 1 <= len(stored["trials"]) <= 3
    compile(stored["snippet"], "snippet", "exec")

    held = next(run for run in read_runs(out / "held-out") if run.policy == found["policy"])
    assert (held.psnr, held.settings["seed"]) == (found["psnr"], 3 + SAMPLES)
    policy, profile = catalog.parse(found["policy"]), Profile.load(out / "profile.safetensors")
    assert found["profile"] == str(out / "profile.safetensors")
    assert profile.settings["seed"] >= 3 + 2 * SAMPLES, "shares seeds with the search or the measurement"
    model = load_model(str(tiny_model), "cpu")
    plain, cached = [], []
    for batch in Job(samples=SAMPLES).batches:
        drawn = labels_of(batch), [3 + SAMPLES + sample for sample in batch], STEPS, 1.5
        plain.append(model.draw(*drawn))
        with tenuto.attach(model.pipe, policy, profile=profile):
            cached.append(model.draw(*drawn))
    assert float(psnr(torch.cat(cached), torch.cat(plain)).mean()) == pytest.approx(found["psnr"], abs=1e-3)


@pytest.mark.slow
def test_an_unreachable_target_still_writes_the_front(tiny_model: Path, tmp_path: Path) -> None:
    result = tuned(tiny_model, tmp_path, "--target", "speedup>=900", "--policy", "every_n")
    assert result.exit_code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "tenuto: speedup>=900: target not met, nearest: every_n" in last
    stored = json.loads((tmp_path / "tune.json").read_text())
    assert not stored["met"]
    assert stored["front"]
    assert "every_n" in result.stdout


@pytest.mark.slow
def test_a_speed_that_is_missed_when_measured_is_exchanged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement says that every setting reaches two thirds of its operations' speed-up."""

    def slow(*args: Any, **options: Any) -> list[Run]:
        return [replace(run, speedup=run.flops_speedup and run.flops_speedup / 1.5) for run in bench(*args, **options)]

    bench = diffusion_bench.bench
    monkeypatch.setattr(diffusion_bench, "bench", slow)
    monkeypatch.setattr("tenuto.bench.diffusion.tuning.TrialOutcome.overhead", 0.0)
    job = Job(steps=12, samples=2)
    found = tune(str(tiny_model), "speedup>=1.8", tmp_path, policies=["every_n"], trials=5, job=job, device="cpu")
    assert found.rejected
    assert found.met
    assert found.speedup is not None
    assert found.speedup >= 1.8
    assert found.run.flops_speedup is not None
    assert found.run.flops_speedup >= 2.7


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--target psnr", "is malformed. Write METRIC>=NUMBER"),
        ("--target psrn>=30", "Did you mean 'psnr'?"),
        ("--target psnr>=30 --policy evry_n", "Did you mean 'every_n'"),
        ("--target psnr>=30 --out {out}/file/in", "Cannot write in"),
        ("--target psnr>=30 --model {out}/none", "There is no model at"),
        ("--target psnr>=30 --steps 9999", "1 to 1000"),
        ("--target psnr>=30 --samples 1", "1 is not in the range x>=2"),
        ("--target psnr>=30 --steps 1 --policy every_n", "settings reused anything"),
    ],
)
def test_bad_input_is_one_line(tiny_model: Path, tmp_path: Path, args: str, said: str) -> None:
    (tmp_path / "file").write_text("in the way")
    result = tuned(tiny_model, tmp_path / "o", *args.format(out=tmp_path).split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert line.startswith("tenuto: error: ")
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_another_search_is_refused_before_work(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "held-out").mkdir()
    (tmp_path / "held-out" / "none.json").write_text("{}")
    with pytest.raises(InputError, match="records of another search"):
        tune(str(tiny_model), "psnr>=30", tmp_path)
