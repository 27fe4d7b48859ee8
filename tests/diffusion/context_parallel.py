"""What each of two ranks does in ``test_parallel.py``; run by torchrun with a folder for the answers.

First every policy of the catalogue, on one rank and under context parallelism (``agree-RANK``); then FirstBlock and
diffusers' own FirstBlockCache where the ranks' shards change differently (``uneven-RANK``), which ends in a deadlock.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import architectures
import torch
import torch.distributed as dist
from architectures import ARCHITECTURES, Architecture, Outputs, generate, relative
from diffusers import ContextParallelConfig, FirstBlockCacheConfig
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import tenuto
from tenuto import catalog
from tenuto.calibration import Profile
from tenuto.diffusion.policies.first_block import relative_l1
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.telemetry import Telemetry

RANKS = 2
HANG, TOO_LONG = 6.0, 600.0  # seconds
MODELS = ("flux", "wan", "qwenimage")
STYLES = ("batched", "separate")
WITH_TOKENS = "every_n:n=3+adacorrection:tokens=0.25"
TEXTS = {  # numbers that decide now this, now that, on random weights
    "first_block": ("first_block:threshold=1",),
    "teacache": ("teacache:threshold=0.7",),
    "fastcache": ("fastcache:alpha=0.5,rtol=0.5", "fastcache:gate=published"),
    "adacorrection": ("every_n:n=3+adacorrection", WITH_TOKENS),
}
architectures.WORDS = 2 * RANKS  # a prompt that divides evenly


class Called:
    """A model as ``generate`` calls it: diffusers gathers tensors only, not its output classes."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.parameters = model, model.parameters

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=self.model(**inputs, return_dict=False)[0])

    def cache_context(self, name: str) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.model.cache_context(name)
        return context


def split(model: Any) -> Any:
    """The model under Ulysses context parallelism over all ranks."""
    mesh = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("ring", "ulysses"))
    with mock.patch("torch.accelerator.device_count", return_value=1):  # diffusers divides by it, on the CPU as well
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS, mesh=mesh))
    return model


def policies() -> Iterator[tuple[str, FeaturePolicy]]:
    """Every policy that is installed, by its text."""
    for name, info in catalog.methods("diffusion").items():
        plain = (f"every_n:n=3+{name}" if info.wraps else (*info.cls.sweep, name)[0],)
        yield from ((text, catalog.parse(text)) for text in TEXTS.get(name, plain))


@cache
def whole(name: str) -> nn.Module:
    """A model on one rank."""
    return ARCHITECTURES[name].build()


@cache
def profile(name: str, method: type[FeaturePolicy]) -> Profile | None:
    """What rank 0 fitted on one rank, on every rank."""
    kind, model = ARCHITECTURES[name], whole(name)

    def each(seed: int) -> Outputs:
        return generate(kind, Called(model), seed)

    made: list[Profile | None] = [None]
    if method.calibrated and dist.get_rank() == 0:
        made = [tenuto.calibrate(model, method(), each, seeds=range(10, 16), settings={})]
    dist.broadcast_object_list(made)
    return made[0]


def run(
    kind: Architecture, model: nn.Module, policy: FeaturePolicy, profile: Profile | None, guidance: str
) -> tuple[Outputs, Telemetry]:
    with tenuto.attach(model, policy, profile=profile) as attached:
        return generate(kind, Called(model), guidance=guidance), attached.telemetry


def refusal(call: Callable[[], Any]) -> str:
    """Why this was refused, empty if it was not."""
    try:
        call()
    except tenuto.TenutoError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def unfitted() -> str:
    """Why a model under context parallelism is not calibrated."""
    kind = ARCHITECTURES["flux"]
    model = split(kind.build())

    def each(seed: int) -> Outputs:
        return generate(kind, Called(model), seed)

    return refusal(lambda: tenuto.calibrate(model, tenuto.TeaCache(), each, seeds=range(4), settings={}))


def furthest(expected: Outputs, found: Outputs) -> float:
    """The largest relative distance of two outputs."""
    return max(relative(*pair) for key in expected for pair in zip(found[key], expected[key], strict=True))


def compared(name: str, policy: FeaturePolicy, guidance: str) -> dict[str, Any]:
    """One rank's answer for one case."""
    kind = ARCHITECTURES[name]
    one, shared, fitted = whole(name), split(kind.build()), profile(name, type(policy.profiled))
    if policy.compose(fitted).corrector:
        return {"refused": refusal(lambda: run(kind, shared, policy, fitted, guidance))}
    (plain, alone), (outputs, together) = (run(kind, model, policy, fitted, guidance) for model in (one, shared))
    detached = [generate(kind, Called(model), guidance=guidance) for model in (one, shared)]
    return {
        "error": furthest(plain, outputs),
        "detached": furthest(*detached),
        "decisions": [
            [f"{e.branch} {e.step} {e.first_block} {e.decision}" for e in t.events] for t in (alone, together)
        ],
        "evidence": [
            [n for e in t.events for n in (e.statistic, e.critical) if n is not None] for t in (alone, together)
        ],
        "flops": [alone.full_flops, together.full_flops],
    }


@torch.no_grad()
def uneven(model: Any, before: Callable[[int], None] = lambda step: None) -> None:
    """Four steps in which only the tokens of rank 0 change."""
    kind = ARCHITECTURES["flux"]
    generator = torch.Generator().manual_seed(1)
    inputs = kind.make(lambda *shape: torch.randn(*shape, generator=generator), 1, 4)
    for step in range(4):
        inputs["hidden_states"][:, :8] *= 0.7
        before(step)
        with model.cache_context("cond"):
            model(**inputs, timestep=torch.tensor([1 - 1e-6 * step]), return_dict=False)


def halves() -> list[float]:
    """How much the first block's residual changes from step 0 to step 1 in either rank's half of the tokens."""
    model = ARCHITECTURES["flux"].build()
    residuals: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        residuals.append(output[1] - kwargs["hidden_states"])

    model.transformer_blocks[0].register_forward_hook(keep, with_kwargs=True)
    uneven(model)
    return [relative_l1(new, old) for new, old in zip(residuals[1].chunk(2, 1), residuals[0].chunk(2, 1), strict=True)]


def deadlock(answer: Path) -> None:
    changes = halves()
    threshold = sum(changes) / 2
    ours = split(ARCHITECTURES["flux"].build())
    with tenuto.attach(ours, tenuto.FirstBlock(threshold=threshold)) as attached:
        uneven(ours)
    theirs = split(ARCHITECTURES["flux"].build())
    theirs.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    decisions = [event.decision for event in attached.telemetry.events if event.first_block == 1]
    with answer.open("w") as file:

        def say(word: str) -> None:
            print(word, file=file, flush=True)

        say(json.dumps({"changes": changes, "threshold": threshold, "decisions": decisions}))
        theirs.transformer_blocks[1].norm1.register_forward_pre_hook(lambda *_: say("computes"))
        dist.barrier()
        faulthandler.dump_traceback_later(HANG, exit=True, file=file)  # needs no help of the thread that hangs
        uneven(theirs, before=lambda step: say(f"step {step}"))
        say("finished")


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(TOO_LONG, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {
        f"{text} {name} {guidance}": compared(name, policy, guidance)
        for text, policy in policies()
        for name in MODELS
        for guidance in STYLES
    }
    (folder / f"agree-{dist.get_rank()}").write_text(json.dumps(found))
    (folder / f"calibrate-{dist.get_rank()}").write_text(unfitted())
    deadlock(folder / f"uneven-{dist.get_rank()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
