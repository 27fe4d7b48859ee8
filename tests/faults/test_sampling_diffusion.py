"""Profiles under sampling they were not fitted on are refused where they promise something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import tenuto
from tenuto.calibration import Profile
from tenuto.diffusion.sampling import kind_of
from tenuto.errors import CalibrationError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # numpy 2 on diffusers' schedulers
]
STEPS = 6


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Any:
    pipe = diffusers.DiTPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _as_it_was(pipe: Any) -> Any:
    scheduler = pipe.scheduler
    yield
    pipe.scheduler = scheduler


def draw(pipe: Any, seed: int = 0) -> Any:
    draw = torch.Generator().manual_seed(seed)
    return pipe([1], generator=draw, num_inference_steps=STEPS, output_type="np").images


@pytest.fixture(scope="module")
def profile(pipe: Any) -> Profile:
    return tenuto.calibrate(
        pipe, tenuto.FastCache(), lambda seed: draw(pipe, seed), seeds=range(6), settings={"by": "me"}
    )


def test_a_profile_records_the_scheduler(profile: Profile) -> None:
    assert profile.settings == {
        **{"by": "me", "sampler": "DDIMScheduler", "kind": "plain"},
        **{"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    }


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_another_kind_of_sampling_is_refused(pipe: Any, profile: Profile, name: str) -> None:
    original = pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(original.config)
    said = rf"fitted under DDIMScheduler and does not hold under {name}.*DPM-Solver"
    with pytest.raises(CalibrationError, match=said), tenuto.attach(pipe, tenuto.FastCache(), profile=profile):
        pass
    pipe.scheduler = original
    with tenuto.attach(pipe, tenuto.FastCache(), profile=profile):
        draw(pipe)
        pipe.scheduler = getattr(diffusers, name).from_config(original.config)
        with pytest.raises(CalibrationError, match=said):
            draw(pipe)
        pipe.scheduler = original
        draw(pipe)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDPMScheduler"])
def test_kin_are_allowed(pipe: Any, profile: Profile, name: str) -> None:
    with tenuto.attach(pipe, tenuto.FastCache(), profile=profile) as run:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        draw(pipe)
    assert run.conditions == {"fitted": profile.settings, "sampled": name}


def test_another_prediction_or_spacing_is_refused(pipe: Any, profile: Profile) -> None:
    config = pipe.scheduler.config
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config, prediction_type="epsilon")
    with pytest.raises(CalibrationError, match="prediction_type='epsilon' instead of 'v_prediction'"):
        with tenuto.attach(pipe, tenuto.FastCache(), profile=profile):
            pass
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config, timestep_spacing="leading")
    with tenuto.attach(pipe, tenuto.FastCache(), profile=profile):
        with pytest.raises(CalibrationError, match="spaced otherwise.*timestep_spacing"):
            draw(pipe)


def test_without_a_promise_nothing_is_refused(pipe: Any, profile: Profile) -> None:
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with tenuto.attach(pipe, tenuto.FastCache(gate="published"), profile=profile):
        pass
    with tenuto.attach(pipe, tenuto.EveryN()) as run:
        pass
    assert run.conditions == {"fitted": None, "sampled": "EulerDiscreteScheduler"}


def test_a_bare_transformer_cannot_know(pipe: Any, profile: Profile) -> None:
    with tenuto.attach(pipe.transformer, tenuto.FastCache(), profile=profile) as run:
        assert run.summary()["conditions"]["sampled"] is None


def test_a_profile_without_a_record_is_taken(pipe: Any, profile: Profile) -> None:
    old = Profile(
        policy=profile.policy, fingerprint=profile.fingerprint, numbers=profile.numbers, tensors=profile.tensors
    )
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with tenuto.attach(pipe, tenuto.FastCache(), profile=old):
        pass


def test_kinds() -> None:
    kinds = {name: kind_of(name) for name in dir(diffusers) if name.endswith("Scheduler")}
    assert {kinds["DDIMScheduler"], kinds["UniPCMultistepScheduler"], kinds["DEISMultistepScheduler"]} == {"plain"}
    assert {kinds["EulerAncestralDiscreteScheduler"], kinds["EDMEulerScheduler"]} == {"scaled"}
    assert kinds["FlowMatchEulerDiscreteScheduler"] == "flow"
