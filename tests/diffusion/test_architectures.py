"""Eleven diffusers architectures, each under the promises of ``attach``: see the names of the tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, STEPS, Architecture, Outputs, generate, relative, same
from torch import nn

import tenuto
from tenuto.calibration import Profile, fingerprint
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.telemetry import Telemetry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CLOSED = [
    tenuto.EveryN(n=1),
    tenuto.FirstBlock(threshold=0.0),
    tenuto.TaylorSeer(interval=1),
    tenuto.TeaCache(threshold=0.0),
    tenuto.FastCache(rtol=0.0),
]
OPEN = [
    tenuto.EveryN(n=2),
    tenuto.FirstBlock(threshold=50.0),
    tenuto.TaylorSeer(interval=2, warmup=2),
    tenuto.TeaCache(threshold=50.0),
    tenuto.FastCache(alpha=0.5, rtol=1000.0),
]
architectures = pytest.mark.parametrize("name", ARCHITECTURES)


def label(policy: FeaturePolicy) -> str:
    return type(policy).__name__


@cache
def subject(name: str) -> tuple[Architecture, nn.Module, Outputs]:
    """An architecture, its model, and what it generates uncached."""
    kind = ARCHITECTURES[name]
    model = kind.build()
    return kind, model, generate(kind, model)


@cache
def profile(name: str, policy: str) -> Profile | None:
    """A hand-made profile for TeaCache (the polynomial is x), a fitted one for FastCache."""
    kind, model, _ = subject(name)
    if policy == "TeaCache":
        numbers = {"coefficients": [0, 0, 0, 1, 0]}
        return Profile(policy="teacache", fingerprint=fingerprint(model), numbers=numbers)
    if policy == "FastCache":
        seeds = range(10, 16)
        return tenuto.calibrate(
            model, tenuto.FastCache(), lambda seed: generate(kind, model, seed), seeds=seeds, settings={}
        )
    return None


def cached(name: str, policy: FeaturePolicy, count_flops: bool = False, **options: Any) -> tuple[Outputs, Telemetry]:
    kind, model, _ = subject(name)
    fitted = profile(name, label(policy))
    with tenuto.attach(model, policy, profile=fitted, count_flops=count_flops) as run:
        outputs = generate(kind, model, **options)
    return outputs, run.telemetry


@architectures
@pytest.mark.parametrize("policy", CLOSED, ids=label)
def test_the_compute_path_is_bit_identical(name: str, policy: FeaturePolicy) -> None:
    outputs, telemetry = cached(name, policy)
    assert same(outputs, subject(name)[2])
    assert telemetry.reuse_ratio == 0


@architectures
def test_counting_operations_changes_nothing(name: str) -> None:
    outputs, telemetry = cached(name, tenuto.EveryN(n=1), count_flops=True)
    assert same(outputs, subject(name)[2])
    assert telemetry.flops == telemetry.full_flops > 0


@architectures
def test_removal_leaves_the_model_as_it_was(name: str) -> None:
    kind, model, plain = subject(name)
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    cached(name, tenuto.EveryN(n=2))
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before
    assert not [path for path, module in model.named_modules() if "forward" in vars(module)]
    assert same(generate(kind, model), plain)


@architectures
@pytest.mark.parametrize("policy", OPEN, ids=label)
def test_every_policy_reuses(name: str, policy: FeaturePolicy) -> None:
    outputs, telemetry = cached(name, policy)
    assert telemetry.reuse_ratio > 0
    assert all(torch.isfinite(output).all() for output in outputs["cond"])
    assert not same(outputs, subject(name)[2])


@architectures
def test_reuse_saves_operations(name: str) -> None:
    outputs, telemetry = cached(name, tenuto.EveryN(n=2), count_flops=True)
    plain = subject(name)[2]
    assert telemetry.reuse_ratio == pytest.approx(0.5)
    assert 0.5 * telemetry.full_flops < telemetry.flops < 0.75 * telemetry.full_flops
    for step, (found, expected) in enumerate(zip(outputs["cond"], plain["cond"], strict=True)):
        assert torch.equal(found, expected) == (step % 2 == 0)


@architectures
@pytest.mark.parametrize("policy", [p for p in OPEN if not p.calibrated], ids=label)
def test_an_identical_input_is_estimated_as_it_was_computed(name: str, policy: FeaturePolicy) -> None:
    kind, model, _ = subject(name)
    creeping = [0.5 - 1e-12 * step for step in range(4)]  # equal in single precision
    outputs, telemetry = cached(name, policy, timesteps=creeping)
    plain = generate(kind, model, timesteps=creeping)
    assert telemetry.reuse_ratio > 0
    for found, expected in zip(outputs["cond"], plain["cond"], strict=True):
        assert relative(found, expected) < 1e-5


@architectures
def test_shadow_mode_shows_the_error_of_the_cached_run(name: str) -> None:
    kind, model, _ = subject(name)
    cached_outputs, _ = cached(name, tenuto.EveryN(n=2))
    with tenuto.attach(model, tenuto.EveryN(n=2), count_flops=False, shadow=True) as run:
        assert same(generate(kind, model), cached_outputs)
    assert [event.error is None for event in run.telemetry.events] == [
        event.decision == "compute" for event in run.telemetry.events
    ]
    assert all(event.error is None or 0 < event.error < float("inf") for event in run.telemetry.events)


@architectures
@pytest.mark.parametrize("policy", [OPEN[0], OPEN[-1]], ids=label)
def test_a_second_prompt_starts_cold(name: str, policy: FeaturePolicy) -> None:
    kind, model, _ = subject(name)
    alone = [cached(name, policy, seed=seed)[0] for seed in (1, 2)]
    with tenuto.attach(model, policy, profile=profile(name, label(policy)), count_flops=False) as run:
        row = [generate(kind, model, seed=seed) for seed in (1, 2)]
    assert all(map(same, row, alone))
    assert run.summary()["generations"] == 2


@architectures
def test_another_resolution_starts_cold(name: str) -> None:
    kind, model, _ = subject(name)
    sizes = [4, 4, 4, 6, 6, 6]
    outputs, telemetry = cached(name, tenuto.EveryN(n=2), count_flops=True, sizes=sizes)
    plain = generate(kind, model, sizes=sizes)
    exact = [torch.equal(*pair) for pair in zip(outputs["cond"], plain["cond"], strict=True)]
    assert exact == [True, False, True, True, False, True]
    assert {(event.generation, event.step) for event in telemetry.events} == {(g, s) for g in (0, 1) for s in range(3)}


@architectures
@pytest.mark.parametrize("policy", OPEN[:2], ids=label)
def test_guidance_branches_are_kept_apart(name: str, policy: FeaturePolicy) -> None:
    separate, telemetry = cached(name, policy, guidance="separate")
    expected = {"cond", "uncond"} if ARCHITECTURES[name].contexts else {"call0", "call1"}
    assert {event.branch for event in telemetry.events} == expected
    for branch in ("cond", "uncond"):
        alone, _ = cached(name, policy, guidance="separate", only=branch)
        assert same({branch: separate[branch]}, alone)


@architectures
def test_batched_guidance_equals_separate_guidance(name: str) -> None:
    batched, telemetry = cached(name, tenuto.EveryN(n=2), guidance="batched")
    assert {event.branch for event in telemetry.events} == {"both" if ARCHITECTURES[name].contexts else "call0"}
    separate, _ = cached(name, tenuto.EveryN(n=2), guidance="separate")
    for step in range(STEPS):
        both = torch.cat([separate["cond"][step], separate["uncond"][step]])
        assert relative(batched["cond_uncond"][step], both) < 1e-4


@architectures
def test_half_precision(name: str) -> None:
    kind = ARCHITECTURES[name]
    model = kind.build().to(torch.bfloat16)
    plain = generate(kind, model)
    for policy in (tenuto.EveryN(n=1), tenuto.FirstBlock(threshold=50.0)):
        with tenuto.attach(model, policy, count_flops=False) as run:
            outputs = generate(kind, model)
        assert all(output.dtype == torch.bfloat16 and output.isfinite().all() for output in outputs["cond"])
        assert same(outputs, plain) == (run.telemetry.reuse_ratio == 0)
        assert isinstance(policy, tenuto.EveryN) == (run.telemetry.reuse_ratio == 0)
