"""``attach`` on a stock diffusers pipeline: a tiny DiTPipeline with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tenuto
from tenuto.calibration import Profile, fingerprint
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import AttachError, CalibrationError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS = 8


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Any:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _left_clean(pipe: Any) -> Iterator[None]:
    yield
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert not [path for path, module in pipe.transformer.named_modules() if "forward" in vars(module)]


def draw(pipe: Any, seed: int = 0, steps: int = STEPS, guidance: float = 2.0) -> np.ndarray:
    return pipe(
        class_labels=[1, 7],
        generator=torch.Generator().manual_seed(seed),
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="np",
    ).images


def tea(pipe: Any) -> Profile:
    numbers = {"coefficients": [0, 0, 0, 1, 0]}
    return Profile(policy="teacache", fingerprint=fingerprint(pipe.transformer), numbers=numbers)


@pytest.fixture(scope="module")
def fast(pipe: Any) -> Profile:
    return tenuto.calibrate(pipe, tenuto.FastCache(), lambda seed: draw(pipe, seed), seeds=range(10, 16), settings={})


@pytest.mark.parametrize("policy", [tenuto.EveryN(n=1), tenuto.FirstBlock(threshold=0.0)], ids=repr)
def test_a_closed_policy_gives_the_same_pictures(pipe: Any, policy: FeaturePolicy) -> None:
    plain = draw(pipe)
    with tenuto.attach(pipe, policy):
        assert np.array_equal(draw(pipe), plain)
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize(
    "policy", [tenuto.EveryN(n=3), tenuto.FirstBlock(threshold=9.0), tenuto.FastCache(rtol=9.0)], ids=repr
)
def test_the_next_call_starts_cold(pipe: Any, fast: Profile, policy: FeaturePolicy) -> None:
    profile = fast if policy.calibrated else None
    alone = []
    for seed in (1, 2):
        with tenuto.attach(pipe, policy, profile=profile):
            alone.append(draw(pipe, seed))
    with tenuto.attach(pipe, policy, profile=profile) as run:
        row = [draw(pipe, 1), draw(pipe, 2)]
    assert all(map(np.array_equal, row, alone))
    assert not np.array_equal(row[1], draw(pipe, 2))
    assert run.summary()["generations"] == 2
    assert {event.step for event in run.telemetry.events if event.generation == 1} == set(range(STEPS))


def test_one_step_generations_start_cold(pipe: Any) -> None:
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        for seed in range(3):
            draw(pipe, seed, steps=1)
    assert [(event.generation, event.step) for event in run.telemetry.events] == [(0, 0), (1, 0), (2, 0)]
    assert run.telemetry.reuse_ratio == 0


def test_the_length_is_known_so_the_last_step_computes(pipe: Any) -> None:
    with tenuto.attach(pipe, tenuto.TeaCache(threshold=1e6), profile=tea(pipe)) as run:
        draw(pipe)
        draw(pipe, steps=5)
    for generation, steps in enumerate((STEPS, 5)):
        decisions = [event.decision for event in run.telemetry.events if event.generation == generation]
        assert decisions == ["compute", *["reuse"] * (steps - 2), "compute"]


def test_without_guidance(pipe: Any) -> None:
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        draw(pipe, guidance=1.0)
    assert run.telemetry.reuse_ratio == 0.5


class Interrupt(Exception):
    """Raised in the middle of a step."""


@pytest.mark.parametrize("place", ["transformer_blocks.1.ff", "proj_out_2"])
def test_an_interrupted_generation_leaves_nothing_behind(pipe: Any, place: str) -> None:
    plain = draw(pipe, 3)
    with tenuto.attach(pipe, tenuto.EveryN(n=2)):
        expected = draw(pipe, 3)

    calls = []

    def stop(*given: Any) -> None:
        calls.append(place)
        if len(calls) == 2:
            raise Interrupt

    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        handle = pipe.transformer.get_submodule(place).register_forward_pre_hook(stop)
        with pytest.raises(Interrupt):
            draw(pipe, 4)
        handle.remove()
        assert run.telemetry.cache_bytes == 0
        assert np.array_equal(draw(pipe, 3), expected)
    assert np.array_equal(draw(pipe, 3), plain)


def test_the_scheduler_is_restored_after_an_exception(pipe: Any) -> None:
    with pytest.raises(Interrupt), tenuto.attach(pipe, tenuto.EveryN(n=2)):
        raise Interrupt


def test_operations_and_bytes_are_counted(pipe: Any) -> None:
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        draw(pipe)
    telemetry = run.telemetry
    assert 0.5 * telemetry.full_flops < telemetry.flops < 0.6 * telemetry.full_flops
    assert telemetry.peak_cache_bytes == 4 * 64 * 16 * 4  # one residual [4, 64, 16] of single precision
    with tenuto.attach(pipe, tenuto.EveryN(n=2), count_flops=False) as run:
        draw(pipe)
    assert (run.telemetry.flops, run.telemetry.flops_speedup) == (0, None)


def test_a_gate_s_own_operations_are_no_saving(pipe: Any) -> None:
    with tenuto.attach(pipe, tenuto.EveryN(n=1)) as plain:
        draw(pipe)
    with tenuto.attach(pipe, tenuto.TeaCache(threshold=0.0), profile=tea(pipe)) as run:
        draw(pipe)
    assert run.telemetry.full_flops == plain.telemetry.full_flops
    assert run.telemetry.flops > run.telemetry.full_flops
    assert run.telemetry.flops_speedup is not None and run.telemetry.flops_speedup < 1


def test_attach_twice(pipe: Any) -> None:
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        for target in (pipe, pipe.transformer):
            with pytest.raises(AttachError, match="attached already. Leave that `with` block first"):
                with tenuto.attach(target, tenuto.FirstBlock()):
                    pass
        draw(pipe)
    assert run.telemetry.reuse_ratio == 0.5
    with tenuto.attach(pipe, tenuto.FirstBlock()):
        pass


def test_a_pipeline_without_a_transformer() -> None:
    from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    )
    with pytest.raises(AttachError) as caught, tenuto.attach(DDPMPipeline(unet, DDIMScheduler()), tenuto.EveryN()):
        pass
    assert "No transformer blocks in DDPMPipeline: searched its components unet (UNet2DModel)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compiled_autoencoder_is_no_obstacle(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "vae", torch.compile(pipe.vae, backend="eager"))
    with tenuto.attach(pipe, tenuto.EveryN(n=2)):
        pass


def test_a_policy_that_needs_a_profile_says_how_to_make_one(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENUTO_HOME", str(tmp_path))
    with pytest.raises(CalibrationError, match=f"{fingerprint(pipe.transformer)}.*tenuto calibrate teacache"):
        with tenuto.attach(pipe, tenuto.TeaCache()):
            pass
    tea(pipe).save(tmp_path / "profiles" / "teacache-mine.safetensors")
    with tenuto.attach(pipe, tenuto.TeaCache()) as run:
        assert run.profile is not None and run.profile.policy == "teacache"


def test_a_profile_of_another_model_is_refused_with_both_fingerprints(pipe: Any, fast: Profile) -> None:
    other = Profile(policy="fastcache", fingerprint="0123456789abcdef", numbers=fast.numbers, tensors=fast.tensors)
    mine = fingerprint(pipe.transformer)
    with pytest.raises(CalibrationError, match=f"0123456789abcdef.*{mine}.*Calibrate again"):
        with tenuto.attach(pipe, tenuto.FastCache(), profile=other):
            pass
    with pytest.raises(CalibrationError, match="for policy 'fastcache', not 'teacache'"):
        with tenuto.attach(pipe, tenuto.TeaCache(), profile=fast):
            pass


def test_a_profile_of_another_number_of_steps_is_refused(pipe: Any, fast: Profile) -> None:
    with tenuto.attach(pipe, tenuto.FastCache(rtol=9.0), profile=fast) as run:
        with pytest.raises(CalibrationError, match=rf"fitted for {STEPS} denoising steps; this generation has 5\. "):
            draw(pipe, steps=5)
        draw(pipe)
    assert run.telemetry.reuse_ratio > 0


def test_a_profile_of_another_span_is_refused(pipe: Any, fast: Profile) -> None:
    with pytest.raises(CalibrationError, match=r"fitted for fastcache:span=0, not span=1\. "):
        with tenuto.attach(pipe, tenuto.FastCache(span=1), profile=fast):
            pass


def test_calibration_without_seeds_or_for_a_policy_that_needs_none(pipe: Any) -> None:
    with pytest.raises(CalibrationError, match="no seeds"):
        tenuto.calibrate(pipe, tenuto.FastCache(), lambda seed: draw(pipe, seed), seeds=(), settings={})
    with pytest.raises(CalibrationError, match="give at least [0-9] seeds"):
        tenuto.calibrate(pipe, tenuto.FastCache(), lambda seed: draw(pipe, seed, 2), seeds=(1, 2), settings={})
    with pytest.raises(tenuto.PolicyError, match="needs no calibration"):
        tenuto.calibrate(pipe, tenuto.EveryN(), lambda seed: draw(pipe, seed), seeds=(1,), settings={})


class Pair:
    """A pipeline with two denoisers, as Wan 2.2 has."""

    def __init__(self, *denoisers: torch.nn.Module) -> None:
        self.components = dict(zip(("transformer", "transformer_2"), denoisers, strict=True))


def test_two_denoisers() -> None:
    from tenuto.testing import TinyDiT, denoise

    first, second = TinyDiT(seed=0), TinyDiT(seed=1)
    plain = denoise(first), denoise(second)
    with tenuto.attach(Pair(first, second), tenuto.EveryN(n=2)) as run:
        denoise(first), denoise(second)
    assert run.telemetry.reuse_ratio == 0.5
    assert len(run.denoisers) == 2
    assert all(map(torch.equal, (denoise(first), denoise(second)), plain))
    with pytest.raises(AttachError, match=r"has 2\. Give one at a time: pipe\.transformer, pipe\.transformer_2"):
        with tenuto.attach(Pair(first, second), tenuto.FastCache()):
            pass
    with pytest.raises(AttachError, match="calibrated for one"):
        tenuto.calibrate(Pair(first, second), tenuto.FastCache(), lambda seed: None, seeds=(1,), settings={})


def test_a_watched_scheduler_still_says_what_it_takes() -> None:
    """Stock pipelines read the signature of ``set_timesteps`` to decide whether it takes sigmas."""
    from types import SimpleNamespace

    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

    scheduler, model = FlowMatchEulerDiscreteScheduler(), tenuto.testing.TinyDiT()
    pipe = SimpleNamespace(components={"transformer": model, "scheduler": scheduler}, scheduler=scheduler)
    with tenuto.attach(pipe, tenuto.EveryN()) as run:
        timesteps, steps = retrieve_timesteps(scheduler, 4, sigmas=[1.0, 0.75, 0.5, 0.25])
        assert steps == len(timesteps) == 4
        assert run.denoisers[0].cache.totals == {"": 4}


def test_each_session_has_its_own_length() -> None:
    from types import SimpleNamespace

    from diffusers import DDIMScheduler

    scheduler, model = DDIMScheduler(), tenuto.testing.TinyDiT()
    pipe = SimpleNamespace(components={"transformer": model, "scheduler": scheduler}, scheduler=scheduler)
    with tenuto.attach(pipe, tenuto.EveryN()) as run:
        scheduler.set_timesteps(50)
        with run.generation("other"):
            scheduler.set_timesteps(20)
        assert run.denoisers[0].cache.totals == {"": 50, ("named", "other"): 20}
