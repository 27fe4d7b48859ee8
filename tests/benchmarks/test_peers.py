"""Peers are counted by what they execute, whatever they say, and leave the model as it was."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tenuto.bench.diffusion.contender import Calls, Contender
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.rows import ImageEntry
from tenuto.errors import AttachError
from tenuto.zoo.pipelines import ImageModel, load_model

pytestmark = pytest.mark.usefixtures("one_thread")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
JOB = Job(steps=8, samples=2, batch=2)


@pytest.fixture(scope="module")
def peers() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of ``benchmarks/peers``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield lambda name: importlib.import_module(f"peers.{name}")
    for name in [name for name in sys.modules if name == "peers" or name.startswith("peers.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ImageModel:
    return load_model(str(tiny_model))


class _Fake:
    """Skips all blocks but the first at every second step, and says nothing about it."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.calls = fault, 0
        self.kept: dict[str, torch.Tensor] = {}

    @contextmanager
    def __call__(self, pipe: Any) -> Iterator[list[object]]:
        head, *rest = pipe.transformer.transformer_blocks
        before = [block.forward for block in (head, *rest)]

        def first(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.fault and self.calls == 3:
                raise self.fault
            self.kept["head"] = before[0](hidden_states, *args, **kwargs)
            return self.kept["head"]

        def other(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                return original(hidden_states, *args, **kwargs) if self.calls % 2 else hidden_states

            return forward

        head.forward = first
        for block, original in zip(rest, before[1:], strict=True):
            block.forward = other(original)
        try:
            yield [self.kept]
        finally:
            for block, original in zip((head, *rest), before, strict=True):
                block.forward = original


def state(model: ImageModel) -> list[dict[str, Any]]:
    pipe = model.pipe
    return [dict(vars(type(pipe))), dict(vars(pipe)), *(dict(vars(module)) for module in pipe.transformer.modules())]


def test_executions_are_counted_not_believed(peers: Callable[[str], ModuleType], model: ImageModel) -> None:
    before = state(model)
    row = Contender(ImageEntry(name="fake", attach=peers("counting").attachment(_Fake())), model, JOB)
    with Calls(model, 100, "test") as row.counter:
        row.work(0)
        assert row.counter.count == row.expected_calls == 8 + 1
    book = row.telemetry()
    assert [(e.step, e.first_block, e.last_block, e.decision) for e in book.events[:3]] == [
        (0, 0, 2, "compute"),
        (1, 0, 0, "compute"),
        (1, 1, 2, "reuse"),
    ]
    assert book.reuse_ratio == pytest.approx(0.5 * 2 / 3)
    assert 1.3 < (book.flops_speedup or 0) < 1.5  # blocks are nearly all of the work: 1 / (1 - 1/3)
    assert book.peak_cache_bytes == 4 * 64 * 16 * 4  # two pictures in two branches, 64 tokens of width 16 in float32
    assert state(model) == before


def test_a_peer_that_never_skips_is_the_plain_pipeline(peers: Callable[[str], ModuleType], model: ImageModel) -> None:
    @contextmanager
    def idle(pipe: Any) -> Iterator[list[object]]:
        yield []

    row = Contender(ImageEntry(name="idle", attach=peers("counting").attachment(idle)), model, JOB)
    row.work(0)
    assert torch.equal(row.pictures[0], model.draw([0, 1], [0, 1], 8, 1.5))
    assert (row.telemetry().reuse_ratio, row.telemetry().flops_speedup) == (0.0, 1.0)


def test_a_peers_own_words_are_kept(peers: Callable[[str], ModuleType], model: ImageModel) -> None:
    before = state(model)
    attach = peers("counting").attachment(_Fake(ValueError("no context\n  is set")))
    with pytest.raises(AttachError, match=r"^ValueError: no context is set$"):
        Contender(ImageEntry(name="fake", attach=attach), model, JOB).probe()
    assert state(model) == before


def test_bytes_are_counted_once(peers: Callable[[str], ModuleType]) -> None:
    tensor = torch.zeros(10)
    loop: list[object] = [tensor, {"view": tensor[2:]}, (torch.zeros(3),), torch.nn.Linear(5, 5)]
    loop.append(loop)
    assert peers("counting").tensor_bytes([loop]) == 40 + 12


@pytest.mark.slow
def test_what_diffusers_does_with_this_model(peers: Callable[[str], ModuleType], model: ImageModel) -> None:
    hooks, before = peers("diffusers_hooks"), state(model)
    ratios = hooks.mag_ratios(model, JOB)
    assert len(ratios.values) == 8
    documented = {entry.name: Contender(entry, model, JOB) for entry in hooks.untouched()}
    books = {name: row.probe() for name, row in documented.items()}
    assert "No cache context is set" in (documented["diffusers_fbc"].refused or "")
    assert books["diffusers_taylorseer"].reuse_ratio == 0
    for entry, decision in (
        (hooks.first_block_cache(10.0), "reuse"),
        (hooks.mag_cache(ratios, 9.0, 4, 0.1), "reuse"),
        (hooks.taylorseer(2, 1), "forecast"),
    ):
        row = Contender(entry, model, JOB)
        book = row.probe()
        assert row.refused is None
        assert 0.2 < book.reuse_ratio < 1
        assert {event.decision for event in book.events} == {"compute", decision}
        assert book.peak_cache_bytes > 0
        assert state(model) == before


def test_what_cache_dit_does_with_this_model(
    peers: Callable[[str], ModuleType], model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIT_LOG_LEVEL", "error")
    pytest.importorskip("cache_dit")
    adapter, before = peers("cache_dit"), state(model)
    for order, decision in ((None, "reuse"), (1, "forecast")):
        row = Contender(adapter.dbcache(10.0, warmup=2, order=order), model, JOB)
        book = row.probe()
        assert row.refused is None
        assert {event.first_block for event in book.events if event.decision == decision} == {1}
        assert book.reuse_ratio == pytest.approx(6 / 8 * 2 / 3)
        assert book.peak_cache_bytes > 0
        assert state(model) == before


def test_every_method_has_as_many_trials(peers: Callable[[str], ModuleType]) -> None:
    peers("counting")  # so that the recipe finds its package
    spec = importlib.util.spec_from_file_location("peers_recipe", BENCHMARKS / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    ladders = [*recipe.OURS.values(), *recipe.PEERS.values(), recipe.MAGCACHE, recipe.FEWER]
    assert {len(ladder) for ladder in ladders} == {6}
    assert recipe.spread(recipe.FEWER, 2) == [33, 8]
    assert recipe.spread(recipe.FEWER, 1) == [33]
