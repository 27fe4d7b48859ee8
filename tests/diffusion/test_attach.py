"""``attach`` on bare transformers: what it puts on, what it refuses, and that it comes off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from architectures import ARCHITECTURES, generate, same
from torch import nn

import tenuto
from tenuto.calibration import Profile, fingerprint
from tenuto.diffusion.models import find_denoisers
from tenuto.diffusion.policies.every_n import StoredResidual
from tenuto.diffusion.policies.first_block import AllButFirst
from tenuto.diffusion.policies.teacache import AccumulatedChange
from tenuto.diffusion.policy import Composition, FeaturePolicy, Paper, Step
from tenuto.errors import AttachError
from tenuto.testing import TinyDiT, denoise

pytestmark = pytest.mark.usefixtures("one_thread")


def left(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if "forward" in vars(module)]


def test_what_it_yields() -> None:
    model, policy = TinyDiT(), tenuto.EveryN(n=2)
    with tenuto.attach(model, policy) as run:
        assert (run.policy, run.profile) == (policy, None)
        denoise(model)
        assert run.summary()["reuse_ratio"] == run.telemetry.reuse_ratio == 0.5
    assert run.telemetry.reuse_ratio == 0.5, "the totals outlive the block"


def test_a_wrapper_that_was_there_comes_back() -> None:
    model = TinyDiT()
    calls: list[str] = []

    def spy(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return inner(*args, **kwargs)

        return forward

    model.forward = wrapped = spy("model", model.forward)  # type: ignore[method-assign]
    model.blocks[1].forward = inner = spy("block", model.blocks[1].forward)
    plain = denoise(model, steps=4)
    calls.clear()
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        denoise(model, steps=4)
    assert (calls.count("model"), calls.count("block")) == (4, 2), "wrappers below see what is computed"
    assert run.telemetry.reuse_ratio == 0.5
    assert vars(model)["forward"] is wrapped and vars(model.blocks[1])["forward"] is inner
    assert torch.equal(denoise(model, steps=4), plain)


def test_the_context_of_a_branch_is_restored() -> None:
    model = ARCHITECTURES["flux"].build()
    original = model.cache_context
    with pytest.raises(ZeroDivisionError), tenuto.attach(model, tenuto.EveryN()) as run, model.cache_context("cond"):
        assert run.denoisers[0].context == "cond"
        with model.cache_context("uncond"):
            assert run.denoisers[0].context == "uncond"
        assert run.denoisers[0].context == "cond"
        _ = 1 / 0
    assert run.denoisers[0].context is None
    assert "cache_context" not in vars(model) and model.cache_context == original


def test_an_attach_that_fails_leaves_nothing() -> None:
    model = ARCHITECTURES["dit"].build()
    model.transformer_blocks[2].compile(backend="eager")
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(tenuto.CalibrationError), tenuto.attach(model, tenuto.TeaCache()):
        pass
    with tenuto.attach(model, tenuto.EveryN()):
        with pytest.raises(AttachError, match="attached already"), tenuto.attach(model, tenuto.FirstBlock()):
            pass
    assert [dict(vars(module)) for module in model.modules()] == before
    with tenuto.attach(model, tenuto.EveryN()):
        pass


def test_two_models_at_once() -> None:
    first, second = TinyDiT(seed=0), TinyDiT(seed=1)
    with tenuto.attach(first, tenuto.EveryN(n=2)) as a, tenuto.attach(second, tenuto.EveryN(n=5)) as b:
        denoise(first), denoise(second)
    assert (a.telemetry.reuse_ratio, b.telemetry.reuse_ratio) == (0.5, 0.8)
    assert not left(first) and not left(second)


@pytest.mark.parametrize("place", ["blocks.2", "out"])
def test_a_step_that_fails_starts_the_generation_again(place: str) -> None:
    model = TinyDiT()
    with tenuto.attach(model, tenuto.EveryN(n=2)):
        expected = denoise(model, 3)
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        denoise(model, 1, steps=5)

        def fail(*given: Any) -> None:
            raise MemoryError

        handle = model.get_submodule(place).register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            denoise(model, 2)
        handle.remove()
        assert run.telemetry.cache_bytes == 0
        assert torch.equal(denoise(model, 3), expected)
    assert not left(model)


class Stack(nn.Module):
    """Blocks called one after the other; ``between`` sees each block's output."""

    def __init__(self, block: type[nn.Module], between: Callable[[torch.Tensor], Any] = lambda h: None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.between = between

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states * 1
        for block in self.blocks:
            hidden_states = block(hidden_states)
            self.between(hidden_states)
        return hidden_states


class AddOne(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + 1


class InPlace(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states += 1
        return hidden_states


class Shrink(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states[:, 1:]


class Triple(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> Any:
        return hidden_states, 1, 2


def steps(model: nn.Module, count: int = 4) -> list[float]:
    x = torch.zeros(2, 5, 4)
    return [float(model(x + step, torch.tensor(1000.0 - step)).mean()) for step in range(count)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(mode: Any) -> None:
    model = Stack(AddOne)
    with mode(), tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        assert steps(model) == [3, 4, 5, 6]
    assert run.telemetry.reuse_ratio == 0.5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("block", "said"),
    [
        (InPlace, r"Block blocks\.0 changes its input in place"),
        (Shrink, r"Block blocks\.0 changes the shape"),
        (Triple, r"Block blocks\.0 returns a tuple of 3"),
    ],
)
def test_blocks_that_cannot_be_cached_are_refused(mode: Any, block: type[nn.Module], said: str) -> None:
    model = Stack(block)
    with mode(), pytest.raises(AttachError, match=said), tenuto.attach(model, tenuto.EveryN(n=2)):
        steps(model)
    assert not left(model)


def test_a_model_may_write_into_what_a_block_returns() -> None:
    model = Stack(AddOne, between=lambda hidden: hidden.add_(10))  # as controlnets do
    plain = steps(model)
    with tenuto.attach(model, tenuto.EveryN(n=2)):
        assert steps(model) == plain == [33, 34, 35, 36]


class Halve(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * 0.5


def test_shadow_mode_measures_the_true_error() -> None:
    model, x = Stack(Halve), torch.ones(2, 5, 4)
    with torch.no_grad(), tenuto.attach(model, tenuto.EveryN(n=2), shadow=True) as run:
        assert float(model(x * 8, torch.tensor(1000.0)).mean()) == 1  # the residual is -7
        assert float(model(x * 16, torch.tensor(900.0)).mean()) == 9  # 16 - 7, not 2
    assert [event.error for event in run.telemetry.events] == [None, pytest.approx((9 - 2) / 2)]
    assert [event.decision for event in run.telemetry.events] == ["compute", "reuse"]


def tea(model: nn.Module) -> Profile:
    return Profile(policy="teacache", fingerprint=fingerprint(model), numbers={"coefficients": [0, 0, 0, 1, 0]})


def test_a_modulated_input_needs_an_attention() -> None:
    model = Stack(AddOne)
    with (
        pytest.raises(AttachError, match=r"Block blocks\.0 has no attention whose input could be read"),
        tenuto.attach(model, tenuto.TeaCache(), profile=tea(model)),
    ):
        steps(model)


class Idle(AddOne):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Identity()


def test_an_attention_that_is_not_called() -> None:
    model = Stack(Idle)
    with (
        pytest.raises(AttachError, match=r"Block blocks\.0 did not call its attention"),
        tenuto.attach(model, tenuto.TeaCache(), profile=tea(model)),
    ):
        steps(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed(FeaturePolicy):
    """A gate of one paper on the scope of another."""

    warmup: int = 1
    paper: ClassVar[Paper] = Paper("", "", 2030, "")

    def compose(self, profile: Profile | None) -> Composition:
        return Composition(AllButFirst(), AccumulatedChange(50.0, (1.0, 0.0)), StoredResidual())


def test_a_modulated_input_is_that_of_the_span() -> None:
    model = TinyDiT()
    with tenuto.attach(model, Mixed()) as run:
        denoise(model)
    assert run.telemetry.reuse_ratio > 0.5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_modulated_input_is_what_the_first_attention_is_given(name: str) -> None:
    kind = ARCHITECTURES[name]
    model = kind.build()
    given: list[torch.Tensor] = []
    first = find_denoisers(model)[0].blocks[0].module
    attention = next(child for key, child in first.named_children() if key.startswith("attn"))

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handle = attention.register_forward_pre_hook(note, with_kwargs=True)
    with tenuto.attach(model, tenuto.TeaCache(threshold=0.0), profile=tea(model), count_flops=False) as run:
        generate(kind, model, steps=2)
    handle.remove()
    read = run.denoisers[0].cache._branches
    state = next(iter(read.values())).gates[0]
    assert torch.equal(state.previous, given[-1])
    assert state.previous.dim() == 3 and same({"": [state.previous]}, {"": [given[-2]]})


def test_steps_know_their_place() -> None:
    seen: list[tuple[int, int | None, float, str]] = []

    class Gate(AccumulatedChange):
        def judge(self, state: Any, step: Step) -> Any:
            seen.append((step.index, step.total, step.timestep, step.branch))
            return AccumulatedChange.judge(self, state, step)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Watching(Mixed):
        def compose(self, profile: Profile | None) -> Composition:
            return Composition(AllButFirst(), Gate(0.0, (1.0, 0.0)), StoredResidual())

    model = TinyDiT()
    with tenuto.attach(model, Watching()):
        denoise(model, steps=2, separate=True)
    assert seen == [
        (0, None, 1000.0, "call0"),
        (0, None, 1000.0, "call1"),
        (1, None, 500.0, "call0"),
        (1, None, 500.0, "call1"),
    ]


def test_a_failure_in_a_skipped_step_is_raised() -> None:
    model, calls = TinyDiT(), []
    model.out.register_forward_pre_hook(lambda *given: calls.append(given) or (1 / 0 if len(calls) == 2 else None))
    with pytest.raises(ZeroDivisionError), tenuto.attach(model, tenuto.FirstBlock(threshold=9.0)):
        denoise(model)
    assert len(calls) == 2
