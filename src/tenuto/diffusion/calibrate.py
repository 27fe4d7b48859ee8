"""Fit a policy's profile for a model by watching it generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tenuto.calibration import Profile, fingerprint
from tenuto.diffusion.attach import attach, check_count, name_of
from tenuto.diffusion.models import find_denoisers
from tenuto.diffusion.parallel import reducer
from tenuto.diffusion.policy import FeaturePolicy, Recorder, alone
from tenuto.diffusion.recording import Recording
from tenuto.diffusion.sampling import facts
from tenuto.errors import CalibrationError

__all__ = ["calibrate"]


def _check_enough(policy: FeaturePolicy, recorder: Recorder, seeds: Sequence[int]) -> None:
    if len(seeds) < recorder.least:
        raise CalibrationError(
            f"{type(policy.profiled).__name__} cannot be fitted on {len(seeds)} generations: give at least "
            f"{recorder.least} seeds (--runs {recorder.least})."
        )


def calibrate(
    target: Any,
    policy: FeaturePolicy,
    generate: Callable[[int], Any],
    *,
    seeds: Sequence[int],
    settings: dict[str, Any],
) -> Profile:
    """Watch uncached generations and fit the policy's profile; refit it on cached ones if the policy asks for that.

    Args:
        target: the pipeline or transformer, nothing attached.
        policy: a calibrated policy; its own numbers may matter (a scope, a longest skip).
        generate: runs one generation for a seed, for example ``lambda s: pipe([3], generator=torch.manual_seed(s))``.
        seeds: one generation each; keep them apart from the seeds you judge by.
        settings: what the profile is for (steps, guidance): stored with it, and with what kind of scheduler the
            pipeline has.

    Raises:
        PolicyError: the policy takes no profile.
        CalibrationError: no seeds, or the model is under context parallelism.
    """
    if not seeds:
        raise CalibrationError("calibrate() was given no seeds. Give at least two, for example seeds=range(8).")
    layouts = find_denoisers(target)
    check_count(policy, target, layouts)
    if reducer(layouts[0].root) is not alone:
        raise CalibrationError(
            "calibrate() was given a model under context parallelism, where each device sees a part of the tokens and "
            "would fit a profile of its own. Calibrate on one device: the profile serves any number of them."
        )
    recorder = policy.profiled.recorder()
    _check_enough(policy, recorder, seeds)
    with attach(target, Recording(watcher=recorder), count_flops=False) as run:
        for number, seed in enumerate(seeds):
            recorder.begin(number)
            run.reset()
            generate(seed)
        mark = fingerprint(run.denoisers[0].layout.root)
    name = name_of(policy)
    scheduler = None if isinstance(target, nn.Module) else getattr(target, "scheduler", None)
    known = {**settings, **({} if scheduler is None else facts(scheduler))}

    def fitted() -> Profile:
        tensors, numbers = recorder.fit()
        return Profile(policy=name, fingerprint=mark, settings=dict(known), numbers=numbers, tensors=tensors)

    profile = fitted()
    rehearsals = recorder.rehearsals()
    if not rehearsals:
        return profile
    for number, seed in enumerate(seeds):
        rehearsed = rehearsals[number % len(rehearsals)]
        with attach(target, rehearsed, profile=profile, count_flops=False, shadow=True, watcher=recorder):
            recorder.begin(number)
            generate(seed)
    return fitted()
