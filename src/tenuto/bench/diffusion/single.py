"""Draw a few pictures under one policy: what ``tenuto run`` does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tenuto.bench.diffusion.contender import Calls
from tenuto.bench.diffusion.grids import grid, save_png
from tenuto.bench.diffusion.job import Job
from tenuto.calibration import Profile
from tenuto.diffusion.attach import attach
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import InputError
from tenuto.measure.folders import check_file
from tenuto.zoo.pipelines import load_model

__all__ = ["draw", "read_labels"]


def read_labels(given: str) -> list[int]:
    """Class numbers from a text such as ``0,3,3``.

    Raises:
        InputError: a part is not a number.
    """
    try:
        return [int(part) for part in given.split(",")]
    except ValueError as error:
        raise InputError(f"labels={given} is not a list of class numbers. Give for example 0,3,7.") from error


def draw(
    model: str,
    policy: FeaturePolicy | None,
    labels: Sequence[int],
    job: Job,
    *,
    profiles: Sequence[Profile] = (),
    device: str = "auto",
    out: Path,
) -> str:
    """Generate one picture per label, write them as one PNG, and say in one sentence what was saved.

    Raises:
        InputError: a label the model does not have, or a file that cannot be written.
        ModelError: the model is missing or damaged.
        CalibrationError: the policy needs a profile and none fits.
    """
    check_file(out, ".png")
    loaded = load_model(model, device)
    loaded.check(job.steps, job.guidance)
    if wrong := [label for label in labels if not 0 <= label < loaded.classes]:
        raise InputError(f"label {wrong[0]} is not allowed: {model} has the classes 0 to {loaded.classes - 1}.")
    if len(profiles) > 1 or (profiles and policy is None):
        raise InputError(f"{len(profiles)} profiles were given. Give one, and a policy that it is for.")
    profile = profiles[0] if profiles else None
    attached = nullcontext() if policy is None else attach(loaded.pipe, policy, profile=profile)
    with attached as run, Calls(loaded, job.steps * loaded.calls(job.guidance), "generate"):
        pictures = loaded.draw(labels, job.seeds(range(len(labels))), job.steps, job.guidance)
    save_png(grid(pictures), out)
    said = f"{out}: {len(labels)} pictures, {job.steps} denoising steps"
    if run is None:
        return f"{said}, nothing cached."
    speedup = run.telemetry.flops_speedup
    saved = f", {1 - 1 / speedup:.1%} of the operations saved" if speedup else ""
    return f"{said}, {run.telemetry.reuse_ratio:.1%} of block executions not computed{saved}."
