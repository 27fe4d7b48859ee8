"""The public laws over every method in the catalog, found by itself; and each law shown to fail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

import tenuto
from tenuto import catalog, testing
from tenuto.diffusion import attach as attaching
from tenuto.diffusion.cache import FeatureCache
from tenuto.diffusion.clock import Clock, Tick
from tenuto.diffusion.policies.every_n import Interval, StoredResidual, WholeStack
from tenuto.diffusion.policy import Composition, Estimator, FeaturePolicy, Paper, Step, Streams, WrappingPolicy
from tenuto.testing import LAWS, LawError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
Law = Callable[[FeaturePolicy], None]


def strongest(name: str) -> FeaturePolicy:
    """The strongest setting of a method's sweep: it must reuse, or the laws would hold for nothing."""
    return catalog.parse(catalog.method(name).cls.sweep[-1])


def kept_closed(policy: FeaturePolicy) -> FeaturePolicy:
    """The same policy, or the one it wraps, with a warm-up that never ends."""
    if isinstance(policy, WrappingPolicy):
        return replace(policy, inner=kept_closed(policy.inner))
    return replace(policy, warmup=10**6)  # type: ignore[type-var]


def all_strongest() -> list[FeaturePolicy]:
    """The strongest setting of every method, and of those that may run without a profile also without."""
    policies = [strongest(name) for name in catalog.methods("diffusion")]
    return policies + [replace(it, fit="online") for it in policies if it.profile_use == "may"]  # type: ignore[call-arg]


each = pytest.mark.parametrize("policy", all_strongest(), ids=catalog.text)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@each
def test_law(policy: FeaturePolicy, law: Law) -> None:
    law(policy)


@each
def test_a_gate_kept_closed_is_no_cache(policy: FeaturePolicy) -> None:
    testing.law_closed_is_identity(kept_closed(policy))


@each
def test_something_is_reused(policy: FeaturePolicy) -> None:
    model = testing.TinyDiT()
    plain, profile = testing.denoise(model), testing.profile_for(policy, model)
    with tenuto.attach(model, policy, profile=profile) as run:
        result = testing.denoise(model)
    assert run.telemetry.reuse_ratio > 0
    assert torch.equal(result, plain) == policy.exact


@dataclass(frozen=True, slots=True, kw_only=True)
class Own(FeaturePolicy):
    """Every second step, by an estimator of the test."""

    estimator: Estimator = StoredResidual()
    n: int = 2
    warmup: int = 1
    paper: ClassVar[Paper] = Paper("", "", 2030, "")

    def compose(self, profile: Any) -> Composition:
        return Composition(WholeStack(), Interval(self.n, self.warmup), self.estimator)


MEMORY: dict[int, Streams] = {}


class Forgetful(StoredResidual):
    """Keeps its state in the module: generations share it."""

    def estimate(self, state: Streams, step: Step) -> Streams:
        return MEMORY[step.span.index]

    def observe(self, state: Streams | None, step: Step, residual: Streams) -> Streams:
        MEMORY[step.span.index] = residual
        return residual


class Box:
    """Hides tensors from the books."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams


class Hiding(StoredResidual):
    def estimate(self, state: Any, step: Step) -> Streams:
        return state.streams

    def observe(self, state: Any, step: Step, residual: Streams) -> Any:
        return Box(residual)


class Dear(StoredResidual):
    """An estimate that costs more than the blocks."""

    def flops(self, state: Any, step: Step) -> float:
        return 1e12


class Broken(StoredResidual):
    def estimate(self, state: Streams, step: Step) -> Streams:
        return tuple(None if r is None else r * float("nan") for r in state)


@pytest.mark.parametrize(
    ("law", "policy"),
    [
        (testing.law_closed_is_identity, Own()),
        (testing.law_generations_apart, Own(estimator=Forgetful())),
        (testing.law_identical_inputs, Own(n=1)),
        (testing.law_honest_books, Own(estimator=Hiding())),
        (testing.law_honest_books, Own(estimator=Dear())),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_policy_is_caught(law: Law, policy: FeaturePolicy) -> None:
    with pytest.raises(LawError, match="law broken"):
        law(policy)


def test_an_estimate_that_is_not_finite_is_computed_instead() -> None:
    testing.law_guidance(Own(estimator=Broken()))
    model = testing.TinyDiT()
    with tenuto.attach(model, Own(estimator=Broken())) as run:
        assert bool(torch.isfinite(testing.denoise(model, 1)).all())
    assert run.telemetry.reuse_ratio == 0


def test_the_broken_policies_are_sound_but_for_that() -> None:
    for law in LAWS[1:]:
        law(Own())


def no_warm_up(patch: pytest.MonkeyPatch) -> None:
    """Neither the gate nor the engine minds the warm-up."""
    create = FeatureCache.__init__

    def eager(self: FeatureCache, composition: Any, lists: Any, warmup: int, *rest: Any) -> None:
        create(self, Composition(WholeStack(), Interval(2, 1), StoredResidual()), lists, 1, *rest)

    patch.setattr(FeatureCache, "__init__", eager)


def one_branch(patch: pytest.MonkeyPatch) -> None:
    tick = Clock.tick
    patch.setattr(Clock, "tick", lambda *given: replace(tick(*given), branch="one", fresh=False))


def never_fresh(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Clock, "tick", lambda self, session, context, timestep: Tick("one", float(timestep.max()), False))


def left_behind(patch: pytest.MonkeyPatch) -> None:
    wrap = attaching._wrap
    patch.setattr(attaching, "_wrap", lambda stack, denoiser: wrap(ExitStack(), denoiser))


def never_released(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FeatureCache, "_forget", lambda self, key: self._branches.pop(key))


@pytest.mark.parametrize(
    ("law", "engine"),
    [
        (testing.law_warm_up, no_warm_up),
        (testing.law_warm_up, never_fresh),
        (testing.law_generations_apart, never_fresh),
        (testing.law_guidance, one_branch),
        (testing.law_detaches, left_behind),
        (testing.law_honest_books, never_released),
    ],
    ids=lambda value: value.__name__,
)
def test_a_broken_engine_is_caught(law: Law, engine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tenuto.EveryN(n=2, warmup=3)
    law(policy)
    engine(monkeypatch)
    with pytest.raises(LawError, match="law broken"):
        law(policy)


@dataclass(unsafe_hash=True, kw_only=True)
class Mutable(FeaturePolicy):
    """Not frozen."""

    n: int = 2
    warmup: int = 1
    name: ClassVar[str] = "mine"

    def compose(self, profile: Any) -> Composition:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Drifting(FeaturePolicy):
    """Its number is another one after every trip through text."""

    n: int = 2
    warmup: int = 1
    name: ClassVar[str] = "mine"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", self.n + 1)

    def compose(self, profile: Any) -> Composition:
        raise NotImplementedError


@pytest.mark.parametrize("cls", [Mutable, Drifting])
def test_a_policy_that_does_not_round_trip_is_caught(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalog.MethodInfo("mine", "diffusion", cls)
    monkeypatch.setattr(catalog, "methods", lambda family=None: {"mine": found})
    with pytest.raises(LawError, match="law broken"):
        testing.law_round_trip(cls())


@pytest.fixture(scope="module")
def bundled() -> Any:
    from tenuto.zoo import named as zoo
    from tenuto.zoo.pipelines import load_model

    if not (zoo.resolve("bundled:dit-fashion", "diffusion") / "model_index.json").is_file():
        pytest.skip("the bundled model is not here: see models/dit_fashion")
    return load_model("bundled:dit-fashion", "cpu")


@pytest.mark.bundled
@each
def test_the_laws_on_the_bundled_model(policy: FeaturePolicy, bundled: Any) -> None:
    def draw(seed: int) -> torch.Tensor:
        return bundled.draw([1, 7], [seed, seed + 1000], 50, 1.5)

    plain = draw(1)
    with tenuto.attach(bundled.pipe, kept_closed(policy)) as closed:
        assert torch.equal(draw(1), plain)
    with tenuto.attach(bundled.pipe, policy) as run:
        first, second = draw(1), draw(2)
    with tenuto.attach(bundled.pipe, policy):
        assert torch.equal(draw(2), second), "a new generation starts cold"
    assert closed.telemetry.reuse_ratio == 0
    assert run.telemetry.reuse_ratio > 0
    assert torch.equal(first, plain) == policy.exact
    assert {e.decision for e in run.telemetry.events if e.step < policy.warmup} == {"compute"}
    assert run.telemetry.flops < run.telemetry.full_flops
    assert torch.equal(draw(1), plain), "the model is as it was"
