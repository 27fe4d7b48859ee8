"""The comparison of tiers under vLLM: what the table says, and that nothing is measured twice."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    """``benchmarks/vllm_tiers.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        importlib.import_module("vllm_tiers.systems")
        spec = importlib.util.spec_from_file_location("vllm_tiers_recipe", BENCHMARKS / "vllm_tiers.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    for name in [name for name in sys.modules if name == "vllm_tiers" or name.startswith("vllm_tiers.")]:
        del sys.modules[name]


def answer(recipe: ModuleType, row: str, prompt: int, seconds: float, **logprobs: float) -> Any:
    return recipe.Answer(row=row, round=0, prompt=prompt, seconds=seconds, cached=96, logprobs=logprobs, stored=2e6)


def test_rows_are_compared_prompt_by_prompt(recipe: ModuleType) -> None:
    told = recipe.table(
        [
            answer(recipe, "vLLM, cold", 0, 1.0, a=-0.1, b=-3.0),
            answer(recipe, "vLLM, cold", 1, 3.0, a=-0.1, b=-3.0),
            answer(recipe, "tenuto", 0, 0.2, a=-0.2, b=-2.5),
            answer(recipe, "tenuto", 1, 0.3, b=-0.1, c=-4.0),
        ]
    )
    line = told.splitlines()[-1].strip("| ").split(" | ")
    assert line == ["tenuto", "2", "0.250 (0.200 to 0.300)", "0.150 (0.100 to 0.200)", "96", "3.900", "1 of 2", "2.0"]


def test_what_was_measured_is_not_measured_again(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    class Server:
        port = 1

        def start(self) -> None: ...

        def stop(self) -> None: ...

    def system(name: str) -> Any:
        def run(bench: Any) -> list[Any]:
            calls.append((name, bench.round))
            return [answer(recipe, name, 0, 1.0, a=-1.0)]

        return run

    monkeypatch.setattr(recipe, "SYSTEMS", {name: system(name) for name in ("one", "two")})
    monkeypatch.setattr(recipe, "ValkeyServer", Server)
    monkeypatch.setattr(recipe, "resolve", lambda name, family: Path(name))
    monkeypatch.setattr(recipe, "make_prompts", lambda *_: [[1, 2]])
    given = {
        "model": "m",
        "rounds": 1,
        "prompts": 1,
        "tokens": 2,
        "block": 32,
        "systems": ["one", "two"],
        "out": tmp_path,
    }
    args = argparse.Namespace(**given, vllm_python=Path("python"), lmcache_python=None)
    assert len(recipe.run(args)) == 2
    args.rounds = 2
    assert len(recipe.run(args)) == 4
    assert calls == [("one", 0), ("two", 0), ("two", 1), ("one", 1)]
