"""Settings measured one after another against the same uncached pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

import tenuto
from tenuto.bench.diffusion import bench as diffusion_bench
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.tuning import Trials
from tenuto.zoo.pipelines import load_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("offline")]
JOB = Job(steps=6, samples=7, seed=2)


def test_the_numbers_are_those_of_a_bench(tiny_model: Path, tmp_path: Path) -> None:
    policies = [tenuto.EveryN(n=2), tenuto.EveryN(n=3)]
    trials = Trials(load_model(str(tiny_model), "cpu"), JOB)
    found = [trials.measure(policy, None) for policy in policies]
    runs = {run.policy: run for run in diffusion_bench.bench(str(tiny_model), policies, tmp_path, JOB, device="cpu")}
    for outcome, name in zip(found, ("every_n", "every_n:n=3"), strict=True):
        assert len(outcome.psnr) == len(outcome.ssim) == JOB.samples
        assert sum(outcome.psnr) / JOB.samples == pytest.approx(runs[name].psnr, abs=1e-6)
        assert outcome.flops_speedup == pytest.approx(runs[name].flops_speedup)
        assert outcome.speedup > 0


def test_a_closed_gate_saves_nothing(tiny_model: Path) -> None:
    outcome = Trials(load_model(str(tiny_model), "cpu"), JOB).measure(tenuto.FirstBlock(threshold=0.0), None)
    assert outcome.flops_speedup is None
    assert outcome.overhead == 0.0
    assert min(outcome.psnr) == 100
