"""Shadow runs: the true errors, the budget, and a bound that is above the error it bounds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tenuto
from tenuto.bench.diffusion.bench import bench
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.shadow import _watched, check_shadow, measure_shadow, sampler_step
from tenuto.errors import InputError
from tenuto.report import write_report
from tenuto.zoo.pipelines import load_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "offline")]
JOB = Job(steps=6, samples=3, guidance=1.5)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_sampler_step_is_the_pipeline_s(tiny_model: Path, guidance: float) -> None:
    model = load_model(str(tiny_model), "cpu")
    with _watched(model.pipe.scheduler) as states:
        model.draw([0, 1], [5, 6], 4, guidance)
    assert len(states) == 5
    for (timestep, before), (_, after) in pairwise(states):
        with torch.no_grad():
            found = sampler_step(model, before[:2], timestep, [0, 1], guidance)
        torch.testing.assert_close(found, after[:2])
    assert "step" not in vars(model.pipe.scheduler), "the scheduler is as it was"


def test_errors_are_found_and_bounded(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), "cpu")
    found = {n: measure_shadow(model, tenuto.EveryN(n=n), None, JOB, range(3)) for n in (1, 2, 3)}
    assert (found[1].estimates, found[1].worst, found[1].output_error) == (0, 0.0, 0.0)
    for shadow in (found[2], found[3]):
        assert shadow.worst >= shadow.mean > 0 and shadow.largest_total >= shadow.worst
        assert 0 < shadow.output_error <= 1.05 * shadow.output_bound  # to first order
        assert (shadow.rtol, shadow.kept) == (None, None)
    assert found[3].output_error > found[2].output_error


def test_a_budget_is_judged(tiny_model: Path) -> None:
    class Promising(tenuto.EveryN):
        __slots__ = ()
        limit = 0.0

        @property
        def budget(self) -> tenuto.ErrorBudget:
            return tenuto.ErrorBudget(rtol=self.limit, total=10 * self.limit)

    model = load_model(str(tiny_model), "cpu")
    kept: dict[float, Any] = {}
    for limit in (1e-9, 10.0):
        Promising.limit = limit
        kept[limit] = measure_shadow(model, Promising(n=2), None, JOB, range(1)).kept
    assert kept == {1e-9: False, 10.0: True}


def test_a_benchmark_records_and_reports_it(tiny_model: Path, tmp_path: Path) -> None:
    runs = bench(str(tiny_model), [tenuto.EveryN(n=2)], tmp_path, Job(steps=4, samples=2), shadow=True)
    told = json.loads((tmp_path / "every_n.json").read_text())["shadow"]
    assert told == runs[1].shadow and told["estimates"] == 2 and runs[0].shadow == {}
    page = write_report(tmp_path).path.read_text()
    assert "True errors" in page and f"{told['worst']:.4f}" in page


def test_other_samplers_are_refused() -> None:
    with pytest.raises(InputError, match=r"which Euler cannot\. Use DDIMScheduler\.$"):
        check_shadow(SimpleNamespace(sampler="Euler"))  # type: ignore[arg-type]
