"""The comparison of tiers under vLLM: what the table says, and that nothing is measured twice."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
            answer(recipe, "tenuto, again", 0, 0.1, a=-0.1),
        ]
    )
    line = told.splitlines()[-1].strip("| ").split(" | ")
    assert line == [
        "tenuto",
        "2",
        "0.250 (0.200 to 0.300)",
        "0.150 (0.100 to 0.200)",
        "0.100",
        "96",
        "3.900",
        "1 of 2",
        "2.0",
    ]


def test_a_round_that_was_measured_is_not_measured_again(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []

    class Server:
        port = 1

        def start(self) -> None: ...

        def stop(self) -> None: ...

    def compare(bench: Any, systems: list[str]) -> list[Any]:
        rounds.append(bench.round)
        return [recipe.Answer(row="a", round=bench.round, prompt=0, seconds=1.0, cached=0, logprobs={})]

    monkeypatch.setattr(recipe, "compare", compare)
    monkeypatch.setattr(recipe, "ValkeyServer", Server)
    monkeypatch.setattr(recipe, "resolve", lambda name, family: Path(name))
    monkeypatch.setattr(recipe, "make_prompts", lambda *_: [[1, 2]])
    given = {
        "model": "m",
        "rounds": 1,
        "prompts": 1,
        "tokens": 2,
        "block": 32,
        "systems": ["vllm"],
        "stores": [],
        "out": tmp_path,
    }
    args = argparse.Namespace(**given, vllm_python=Path("python"), lmcache_python=None)
    assert len(recipe.run(args)) == 1
    args.rounds = 3
    assert len(recipe.run(args)) == 3
    assert rounds == [0, 1, 2]


def test_every_reader_is_asked_in_turn(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = sys.modules["vllm_tiers.systems"]
    asked: list[tuple[str, int]] = []

    class Side:
        def __init__(self, codec: str) -> None:
            self.codec = codec

        def ask(self, ids: list[int], tokens: int = 1, pause: float = 0.0) -> dict[str, Any]:
            if len(ids) == 2:
                asked.append((self.codec, ids[0]))
            return {"seconds": 1.0, "cached": 0, "logprobs": {"1": -1.0}}

    @contextmanager
    def engine(python: Path, given: dict[str, Any], log: Path) -> Iterator[Side]:
        tiers = given["connector"]
        yield Side(tiers["kv_connector_extra_config"]["secondary_tiers"][0]["address"] if tiers else "none")

    monkeypatch.setattr(systems, "engine", engine)
    monkeypatch.setattr(systems, "SETTLE", 0.0)
    bench = recipe.Bench(
        round=0,
        prompts=[[0, 0], [1, 1]],
        model=tmp_path,
        block=32,
        out=tmp_path,
        vllm=tmp_path,
        lmcache=None,
        valkey=9,
        stores=recipe.STORES,
    )
    found = recipe.compare(bench, ["vllm", "raw"])
    rows = ["vLLM, cold", "tenuto raw, disk", "tenuto raw, Valkey"]
    assert [a.row for a in found if a.prompt == 0 and not a.row.endswith("again")] == [
        "tenuto raw, first process",
        *rows,
    ]
    assert [a.row for a in found if a.prompt == 1][1:4] == [*rows[1:], rows[0]]
    assert [number for _, number in asked[2:]] == [0] * 6 + [1] * 6
    assert not list(tmp_path.glob("store-*"))
