"""torch.compile: compiled blocks are skipped and kept; a model compiled as a whole is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, STEPS, generate, relative, same
from torch import nn

import tenuto
from tenuto.calibration import Profile, fingerprint
from tenuto.errors import AttachError

pytestmark = pytest.mark.slow


class Backend:
    """A backend that runs graphs as they are and counts how many were compiled and how often they ran."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(name: str) -> tuple[nn.Module, Backend]:
    model, backend = ARCHITECTURES[name].build(), Backend()
    if name == "flux":
        model.compile_repeated_blocks(backend=backend)
    else:
        for block in model.transformer_blocks:
            block.compile(backend=backend)
    return model, backend


@pytest.mark.parametrize("name", ["flux", "dit"])
@pytest.mark.parametrize("count_flops", [False, True])
def test_compiled_blocks_are_skipped_and_kept(name: str, count_flops: bool) -> None:
    kind = ARCHITECTURES[name]
    model, backend = compiled(name)
    plain = generate(kind, model)
    per_step, graphs = backend.runs // STEPS, backend.graphs
    before = [dict(vars(module)) for module in model.modules()]
    backend.runs = 0
    with tenuto.attach(model, tenuto.EveryN(n=2), count_flops=count_flops) as run:
        outputs = generate(kind, model)
    eager = kind.build()
    with tenuto.attach(eager, tenuto.EveryN(n=2), count_flops=count_flops) as expected:
        for found, wanted in zip(outputs["cond"], generate(kind, eager)["cond"], strict=True):
            assert relative(found, wanted) < 1e-5
    assert run.summary() == expected.summary()
    assert run.telemetry.reuse_ratio == pytest.approx(0.5)
    assert backend.runs == per_step * (STEPS // 2 - count_flops), "computed steps run compiled, but the counted one"
    assert backend.graphs == graphs, "nothing is compiled again"
    assert [dict(vars(module)) for module in model.modules()] == before
    assert same(generate(kind, model), plain)
    assert backend.graphs == graphs


def test_the_modulated_input_of_a_compiled_block() -> None:
    kind = ARCHITECTURES["dit"]
    model, _ = compiled("dit")
    numbers = {"coefficients": [0, 0, 0, 1, 0]}
    profile = Profile(policy="teacache", fingerprint=fingerprint(model), numbers=numbers)
    with tenuto.attach(model, tenuto.TeaCache(threshold=50.0), profile=profile) as run:
        outputs = generate(kind, model)
    assert run.telemetry.reuse_ratio > 0.5
    assert all(output.isfinite().all() for output in outputs["cond"])


def test_a_model_wrapped_by_compile_is_refused() -> None:
    model = torch.compile(ARCHITECTURES["dit"].build(), backend="eager")
    with pytest.raises(AttachError, match=r"compile_repeated_blocks\(\)"), tenuto.attach(model, tenuto.EveryN()):
        pass


def test_a_model_compiled_in_place_is_refused_and_left_as_it_was() -> None:
    kind = ARCHITECTURES["dit"]
    model = kind.build()
    plain = generate(kind, model)
    model.compile(backend="eager")
    said = r"compiled as a whole.*compile_repeated_blocks\(\)"
    with pytest.raises(AttachError, match=said), tenuto.attach(model, tenuto.EveryN()):
        pass
    assert not [path for path, module in model.named_modules() if "forward" in vars(module)]
    assert relative(generate(kind, model)["cond"][0], plain["cond"][0]) < 1e-5


def test_blocks_replaced_by_compiled_ones_are_refused() -> None:
    model = ARCHITECTURES["dit"].build()
    for index, block in enumerate(model.transformer_blocks):
        model.transformer_blocks[index] = torch.compile(block, backend="eager")
    with pytest.raises(AttachError, match=r"block\.compile\(\)"), tenuto.attach(model, tenuto.EveryN()):
        pass
