"""Calibration profiles for a benchmark: given, found, or fitted on seeds that it does not judge by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tenuto import catalog
from tenuto.bench.diffusion.contender import Calls
from tenuto.bench.diffusion.job import CALIBRATION_OFFSET, CLASSES, Job, labels_of
from tenuto.calibration import Profile, find, profile_folders
from tenuto.diffusion.attach import serves
from tenuto.diffusion.calibrate import calibrate
from tenuto.diffusion.models import find_denoisers
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import CalibrationError, InputError
from tenuto.zoo.pipelines import ImageModel

__all__ = ["RUNS", "Fitted", "fit_profile", "own_place", "profiles_for"]

RUNS = 8
"""Calibration generations, of one picture per class each."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A profile, and the seconds that fitting it took just now (0 if it was there)."""

    profile: Profile
    seconds: float = 0.0


def _setting(model: ImageModel, steps: int, guidance: float) -> dict[str, Any]:
    return {"steps": steps, "guidance": guidance, "sampler": model.sampler}


def fit_profile(
    model: ImageModel,
    policy: FeaturePolicy,
    *,
    steps: int,
    guidance: float,
    seed: int,
    runs: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Profile:
    """Calibrate a policy on uncached generations of ten pictures, with the seeds from ``seed`` on.

    ``tell`` is told, before anything is fitted, what memory and time it will take.

    Raises:
        PolicyError: the policy needs no calibration.
        InputError: ``runs``, ``steps`` or ``guidance`` is out of its range.
    """
    runs = RUNS if runs is None else runs
    if runs < 1 or seed < 0:
        raise InputError(f"runs={runs}, seed={seed}: give at least one calibration run and no negative seed.")
    model.check(steps, guidance)
    recorder = policy.profiled.recorder()  # refuses policies that need none before anything is drawn
    passes = 2 if recorder.rehearsals() else 1

    calls = steps * model.calls(guidance)

    def generate(first: int) -> None:
        asked = labels_of(range(first - seed, first - seed + CLASSES), model.prompts)
        model.draw(asked, range(first, first + CLASSES), steps, guidance)

    settings = {**_setting(model, steps, guidance), "seed": seed, "pictures": runs * CLASSES}
    if tell:
        started = time.perf_counter()
        model.draw(labels_of(range(CLASSES)), range(seed, seed + CLASSES), 1, guidance)
        seconds = (time.perf_counter() - started) * steps * runs * passes
        config = model.pipe.transformer.config
        streams = len(recorder.scope.spans(find_denoisers(model.pipe)[0].lists))
        memory = recorder.memory(config.num_attention_heads * config.attention_head_dim, streams, steps)
        tell(
            f"{passes * runs} generations of {steps} steps: about {seconds:.0f} s, {memory / 2**20:.0f} MiB of memory."
        )
    started = time.perf_counter()
    with Calls(model, passes * runs * calls, f"calibrate {catalog.text(policy)}"):
        seeds = range(seed, seed + runs * CLASSES, CLASSES)
        profile = calibrate(model.pipe, policy, generate, seeds=seeds, settings=settings)
    return replace(profile, settings={**profile.settings, "seconds": round(time.perf_counter() - started, 1)})


def own_place(policy: FeaturePolicy, profile: Profile | None = None) -> Path:
    """Where in the user's cache folder a policy's profile is kept, and found by ``attach``."""
    folder = next(iter(profile_folders()))
    told = profile.settings if profile else {}
    made_for = f"-{profile.fingerprint}-{told['steps']}-{told['guidance']:g}-{told['sampler']}" if profile else ""
    safe = catalog.text(policy).replace(":", "-").replace(",", "-")
    return folder / f"{safe}{made_for}.safetensors"


def _apart(profile: Profile, job: Job) -> None:
    first, count = profile.settings.get("seed"), profile.settings.get("pictures")
    if first is None or count is None:
        return
    if first < job.seed + job.samples and job.seed < first + count:
        raise CalibrationError(
            f"The profile of {profile.policy!r} was fitted on the seeds {first} to {first + count - 1}, which overlap "
            f"the seeds {job.seed} to {job.seed + job.samples - 1} to judge by. Give another --seed."
        )


def profiles_for(
    model: ImageModel, policies: Sequence[FeaturePolicy], job: Job, given: Sequence[Profile], folder: Path
) -> dict[FeaturePolicy, Fitted]:
    """A profile for every policy that needs one: given, found, or fitted now and saved in ``folder``. A policy that may
    do without (``fit=auto``) has none where none is given or found.

    Raises:
        CalibrationError: a given profile is for another model or cannot serve, or shares seeds with the job.
        InputError: a given profile is for none of the policies.
    """
    names = {
        policy: catalog.text(policy.profiled).partition(":")[0] for policy in policies if policy.profile_use != "no"
    }
    for profile in given:
        profile.check(profile.policy, model.fingerprint)
        if profile.policy not in names.values():
            listed = ", ".join(sorted(set(names.values()))) or "none that takes a profile"
            raise InputError(f"A profile for {profile.policy!r} was given, but the policies are: {listed}.")
    ready = [Fitted(profile) for profile in given]
    chosen: dict[FeaturePolicy, Fitted] = {}
    for policy, name in names.items():
        wanted = _setting(model, job.steps, job.guidance)
        found = find(name, model.fingerprint, wanted, accept=partial(serves, policy))
        at_hand = [*ready, *([Fitted(found)] if found else [])]
        fitting = [it for it in at_hand if it.profile.policy == name and serves(policy, it.profile)]
        if not fitting and policy.profile_use == "may":
            continue
        if not fitting:
            seed = job.seed + CALIBRATION_OFFSET
            profile = fit_profile(model, policy, steps=job.steps, guidance=job.guidance, seed=seed)
            profile.save(folder / f"{name}-{len(ready)}.safetensors")
            fitting = [Fitted(profile, float(profile.settings["seconds"]))]
            ready += fitting
        _apart(fitting[0].profile, job)
        chosen[policy] = fitting[0]
    return chosen
