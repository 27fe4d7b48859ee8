"""Copies made while attached are plain; whatever is put on or taken off meanwhile, nothing of ours stays."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from torch import nn

import tenuto
from tenuto.testing import TinyDiT, denoise

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # numpy 2 on diffusers' schedulers
]


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


DEEP: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "average of weights": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
}


def as_it_was(model: nn.Module, before: list[dict[str, Any]]) -> bool:
    return [dict(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("made", DEEP)
def test_deep_copies_have_their_own_weights(made: str) -> None:
    model = TinyDiT()
    plain = denoise(model)
    with tenuto.attach(model, tenuto.AdaCorrection(inner=tenuto.EveryN(n=2), tokens=0.5)):
        denoise(model)
        duplicate = DEEP[made](model)
        assert torch.equal(denoise(duplicate), plain), "the copy computes every step"
        assert not [path for path, part in duplicate.named_modules() if {"forward", "__getstate__"} & set(vars(part))]
        with tenuto.attach(duplicate, tenuto.EveryN(n=2)) as run:
            denoise(duplicate)
        assert run.telemetry.reuse_ratio == 0.5, "and can have a policy of its own"
    with torch.no_grad():
        for weight in duplicate.parameters():
            weight.zero_()
    assert not denoise(duplicate, steps=1).equal(denoise(model, steps=1))
    assert torch.equal(denoise(model), plain)


def test_a_shallow_copy_shares_blocks_and_is_plain_all_the_same() -> None:
    model = TinyDiT()
    plain = denoise(model)
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        shallow = copy.copy(model)
        assert torch.equal(denoise(shallow), plain)
        assert not run.telemetry.events
        cached = denoise(model)
    assert not torch.equal(cached, plain) and torch.equal(denoise(shallow), plain)


def test_a_quantised_copy_and_an_average_of_parameters() -> None:
    from diffusers.training_utils import EMAModel

    model = TinyDiT()
    with tenuto.attach(model, tenuto.EveryN(n=2)):
        average = EMAModel(model.parameters())
        average.step(model.parameters())
        other = TinyDiT(seed=1)
        average.copy_to(other.parameters())
    assert torch.equal(denoise(other), denoise(model))


def pipeline(model: nn.Module, scheduler: Any) -> Any:
    return SimpleNamespace(components={"transformer": model, "scheduler": scheduler}, scheduler=scheduler)


def test_a_copied_scheduler_is_somebody_else_s() -> None:
    scheduler = DDIMScheduler()
    pipe = pipeline(TinyDiT(), scheduler)
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        scheduler.set_timesteps(20)
        mine = copy.deepcopy(scheduler)
        mine.set_timesteps(7)
        assert (len(mine.timesteps), len(scheduler.timesteps)) == (7, 20)
        assert run.denoisers[0].cache.totals == {"": 20}
        assert type(pickle.loads(pickle.dumps(scheduler))) is DDIMScheduler
    assert not {"set_timesteps", "__getstate__"} & (set(vars(mine)) | set(vars(scheduler)))


def test_a_pipeline_copied_as_a_whole() -> None:
    pipe = pipeline(TinyDiT(), DDIMScheduler())
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        other = copy.deepcopy(pipe)
        other.scheduler.set_timesteps(3)
        denoise(other.components["transformer"])
        assert not run.telemetry.events and not run.denoisers[0].cache.totals


def test_a_scheduler_put_in_place_of_another_is_seen() -> None:
    model, first = TinyDiT(), DDIMScheduler()
    pipe = pipeline(model, first)
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        first.set_timesteps(10)
        denoise(model)
        pipe.scheduler = second = UniPCMultistepScheduler.from_config(first.config)
        second.set_timesteps(4)
        denoise(model, 1, steps=4)
        assert run.conditions["sampled"] == "UniPCMultistepScheduler"
        assert run.denoisers[0].cache.totals == {"": 4}
        second.set_timesteps(6)
        assert run.denoisers[0].cache.totals == {"": 6}
    assert [event.step for event in run.telemetry.events if event.generation == 1] == [0, 1, 2, 3]
    assert not {"set_timesteps", "__getstate__"} & (set(vars(first)) | set(vars(second)))


def test_two_pipelines_share_a_scheduler_and_end_in_the_other_order() -> None:
    scheduler = DDIMScheduler()
    pipes = [pipeline(TinyDiT(seed=seed), scheduler) for seed in range(2)]
    attachments = [tenuto.attach(pipe, tenuto.EveryN(n=2)) for pipe in pipes]
    first, second = (attachment.__enter__() for attachment in attachments)
    scheduler.set_timesteps(5)
    assert first.denoisers[0].cache.totals == second.denoisers[0].cache.totals == {"": 5}
    attachments[0].__exit__(None, None, None)
    scheduler.set_timesteps(6)
    assert (first.denoisers[0].cache.totals, second.denoisers[0].cache.totals) == ({"": 5}, {"": 6})
    attachments[1].__exit__(None, None, None)
    assert "set_timesteps" not in vars(scheduler) and "__getstate__" not in vars(scheduler)


def test_offloading_hooks_put_on_and_taken_off_while_attached() -> None:
    model, before = TinyDiT(), None
    plain = denoise(model)
    before = [dict(vars(module)) for module in model.modules()]
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        expected = denoise(model)
        accelerate.hooks.add_hook_to_module(model, accelerate.hooks.ModelHook())
        assert torch.equal(denoise(model), expected), "below a hook of somebody else"
        accelerate.hooks.remove_hook_from_module(model)
        assert torch.equal(denoise(model), expected)
        count = len(run.telemetry.events)
        model.forward = type(model).forward.__get__(model)  # as offloading does that was on before us
        denoise(model), denoise(model)
        assert len(run.telemetry.events) >= count + 19, "noticed at the first call"
    assert torch.equal(denoise(model), plain)
    del model.forward
    assert as_it_was(model, before)


@pytest.mark.parametrize("place", ["blocks.0", "out"])
def test_nothing_is_left_after_an_exception(place: str) -> None:
    model = TinyDiT()
    before = [dict(vars(module)) for module in model.modules()]

    def fail(*given: Any) -> None:
        raise MemoryError

    with pytest.raises(MemoryError), tenuto.attach(model, tenuto.EveryN(n=2)):
        handle = model.get_submodule(place).register_forward_pre_hook(fail)
        try:
            denoise(model)
        finally:
            handle.remove()
    assert as_it_was(model, before)


def test_a_real_pipeline_offloads_after_every_call(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' enable_model_cpu_offload takes its hooks off and puts them on again after each call."""
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    hook: Any = None

    def offload() -> None:
        nonlocal hook
        if hook is not None:
            accelerate.hooks.remove_hook_from_module(pipe.transformer)
        hook = accelerate.hooks.ModelHook()
        accelerate.hooks.add_hook_to_module(pipe.transformer, hook)

    offload()
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        for seed in range(3):
            pipe([1], generator=torch.Generator().manual_seed(seed), num_inference_steps=4, output_type="np")
            offload()
    assert [event.step for event in run.telemetry.events] == [0, 1, 2, 3] * 3
    assert run.telemetry.reuse_ratio == 0.5
