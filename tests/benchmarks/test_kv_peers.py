"""Both sides of the KV comparison follow one protocol, and nothing is measured twice."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError
from tenuto.testing.kv import TinyLM, tokens
from tenuto.zoo.language import LanguageModel

pytestmark = pytest.mark.usefixtures("one_thread")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Peers = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def peers() -> Iterator[Peers]:
    """Imports a module of ``benchmarks/kv_peers``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield lambda name: importlib.import_module(f"kv_peers.{name}")
    for name in [name for name in sys.modules if name == "kv_peers" or name.startswith("kv_peers.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def recipe(peers: Peers) -> ModuleType:
    """``benchmarks/kv_peers.py``."""
    peers("answering")  # so that the recipe finds its package
    spec = importlib.util.spec_from_file_location("kv_peers_recipe", BENCHMARKS / "kv_peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def request(peers: Peers, seed: int = 0, questions: int = 2) -> Any:
    made = peers("answering")
    asked = [made.Asked(tokens=tokens(5, seed + n + 1)[0].tolist(), most=6) for n in range(questions)]
    return made.Request(context=tokens(130, seed)[0].tolist(), questions=asked, ends=[])


@contextmanager
def small_keys(model: Any) -> Iterator[None]:
    """A press of our own, as kvpress's: each layer keeps the half of its keys that have the smallest norm."""

    def prune(module: Any, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        best = layer.keys.norm(dim=-1).topk(layer.keys.shape[2] // 2, largest=False).indices
        at = best[..., None].expand(-1, -1, -1, layer.keys.shape[-1])
        layer.keys, layer.values = layer.keys.gather(2, at), layer.values.gather(2, at)

    handles = [layer.self_attn.register_forward_hook(prune, with_kwargs=True) for layer in model.model.layers]
    yield
    for handle in handles:
        handle.remove()


def test_both_sides_answer_alike(peers: Peers) -> None:
    model, asked = TinyLM(), request(peers)
    with torch.no_grad():
        theirs = peers("kvpress_side").answer(model, small_keys, asked)
    ours = peers("tenuto_side").answer(model, "knorm", MemoryBudget.keep(0.5), asked)
    plain = peers("transformers_side").answer(model, "dynamic", asked)
    assert ours.tokens == theirs.tokens
    assert ours.tokens != plain.tokens
    assert theirs.bytes_held * 2 == plain.bytes_held == 130 * 3 * 2 * 2 * 32 * 4
    assert theirs.bytes_held <= ours.bytes_held < 1.1 * theirs.bytes_held
    assert min(ours.prefill_s, ours.decode_ms, theirs.prefill_s, theirs.decode_ms) > 0


@pytest.mark.parametrize("policy", ["snapkv:window=16", "streaming_llm:contiguous=false", "kvzip", "knorm+kivi:bits=8"])
def test_questions_do_not_see_each_other(peers: Peers, policy: str) -> None:
    model, both = TinyLM(), request(peers)
    one = peers("answering").Request(context=both.context, questions=both.questions[1:], ends=[])
    answer = peers("tenuto_side").answer
    found = [answer(model, policy, MemoryBudget.keep(0.5), asked) for asked in (both, one)]
    assert found[0].tokens[1:] == found[1].tokens
    assert found[0].bytes_held == found[1].bytes_held


def test_an_answer_ends_where_it_should(peers: Peers) -> None:
    made = peers("answering")
    decoder = made.Decoder([7])
    said = iter([3, 5, 7, 9])
    step = lambda new: torch.nn.functional.one_hot(torch.tensor(next(said)), 10)  # noqa: E731
    assert decoder.write(step, made.Asked(tokens=[1, 2], most=4)) == [3, 5]
    assert decoder.steps == 2


@pytest.mark.processes
def test_the_pipe_keeps_the_other_sides_words(peers: Peers, tmp_path: Path) -> None:
    script = """
import json, sys
print(json.dumps({"kvpress": "0"}), flush=True)
for line in sys.stdin:
    given = json.loads(line)
    told = {"tokens": [given["request"]["context"]], "bytes_held": 3, "prefill_s": given["keep"], "decode_ms": None}
    if given["press"] == "gone":
        sys.exit("no more")
    print(json.dumps({"error": "ValueError: no"} if given["press"] == "bad" else told), flush=True)
"""
    client, asked = peers("kvpress_client"), request(peers)
    with client.pipe([sys.executable, "-c", script], tmp_path / "log") as other:
        assert other.versions == {"kvpress": "0"}
        found = other.ask("good", 0.25, asked)
        assert (found.tokens, found.prefill_s) == ([asked.context], 0.25)
        with pytest.raises(AttachError, match=r"^ValueError: no$"):
            other.ask("bad", 0.25, asked)
        with pytest.raises(AttachError, match="has ended"):
            other.ask("gone", 0.25, asked)
    assert (tmp_path / "log").read_text() == "no more\n"


def test_both_sides_have_the_same_methods(peers: Peers) -> None:
    rows = peers("rows")
    assert set(rows.METHODS) == set(peers("kvpress_side").PRESSES)
    for text in (*rows.METHODS.values(), *rows.COMPOSITIONS):
        catalog.parse(text.format(repeat="1 2"), "kv")
    made = rows.rows(("dynamic",), rows.COMPOSITIONS, "1 2")
    assert len({(row.method, row.side) for row in made}) == len(made)


class Tokenizer:
    """Words are numbers."""

    chat_template, eos_token_id = None, None

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=torch.tensor([[len(word) for word in text.split()]]))

    def decode(self, ids: torch.Tensor, **_: Any) -> str:
        return " ".join(map(str, ids.tolist()))


def test_a_run_goes_on_where_it_stopped(
    peers: Peers, recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Other:
        versions: ClassVar[dict[str, str]] = {"kvpress": "0"}

        def ask(self, press: str, keep: float, asked: Any) -> Any:
            calls.append((press, keep, asked.context[0]))
            if press == "pyramidkv":
                raise AttachError("it cannot")
            return peers("answering").Answers(tokens=[[1], [2]], bytes_held=8, prefill_s=1.0, decode_ms=None)

    @contextmanager
    def kvpress(*_: Any) -> Iterator[Other]:
        yield Other()

    model = LanguageModel(name="tiny", model=TinyLM(), tokenizer=Tokenizer(), fingerprint="f")
    for name, value in (("load_language", lambda *_: model), ("resolve", lambda *_: tmp_path), ("kvpress", kvpress)):
        monkeypatch.setattr(recipe, name, value)
    made = peers("examples")
    cases = [made.Case(name=f"t/{n}", request=request(peers, n), answers=[["1"], ["3", "2"]]) for n in range(2)]
    made.write(cases, tmp_path / "examples.jsonl")
    assert made.read(tmp_path / "examples.jsonl") == cases
    args = argparse.Namespace(
        model="tiny", kvpress_python=None, keep=0.5, context=130, tasks="t", examples=2, out=tmp_path, policies=[]
    )
    args.rows = ["knorm"]
    recipe.run(args)
    args.rows = ["knorm", "pyramidkv", "dynamic"]
    found = recipe.run(args)
    assert sorted(calls) == sorted((p, 0.5, case.request.context[0]) for p in ("knorm", "pyramidkv") for case in cases)
    assert {r.score for r in found if (r.method, r.side) == ("knorm", "kvpress")} == {(1 + 0.5) / 2}
    assert [r.error for r in found if (r.method, r.side) == ("pyramidkv", "kvpress")] == ["it cannot"] * 2
    assert len(found) == 5 * 2
    args.keep = 0.25
    with pytest.raises(SystemExit, match="other settings"):
        recipe.run(args)


def test_differences_are_paired(peers: Peers) -> None:
    table = peers("table")

    def result(method: str, side: str, example: int, score: float, held: int, error: str | None = None) -> Any:
        told = {"text": method, "budget": "keep", "example": f"t/{example}", "error": error, "prefill_s": 1.0}
        return table.Result(method=method, side=side, score=score, bytes_held=held, **told)

    results = [result("dynamic", "transformers", n, 1.0, 2**20) for n in range(3)]
    for n, (theirs, ours) in enumerate([(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]):
        results += [result("knorm", "kvpress", n, theirs, 2**19), result("knorm", "tenuto", n, ours, 2**18)]
        results += [result("snapkv", "kvpress", n, 1.0, 2**20), result("a+b", "tenuto", n, ours, 2**19)]
    results += [result("think", "kvpress", 0, 0.0, 0, "KeyError: 'x'")]
    text = table.tables(results)
    assert "| `knorm` | 3 | 0.333 | 0.667 | +0.333 (-1.101 to +1.768) | 0.50 (50 %) | 0.25 (25 %) | 1.00 |" in text
    assert "| - kvpress's best, `snapkv` | - its best that frees memory, `knorm` |" in text
    worse, better = "-0.333 (-1.768 to +1.101)", "+0.333 (-1.101 to +1.768)"
    assert f"| `a+b` | 3 | 0.667 | {worse} | {worse} | {better} | 0.50 (50 %) | 1.00 |" in text
    assert "| `think` | kvpress | 1 | KeyError: 'x' |" in text


def test_bytes_of_quantised_caches(peers: Peers) -> None:
    side = peers("transformers_side")
    assert side.tensor_bytes([{"a": torch.zeros(3), "b": (torch.zeros(2, dtype=torch.uint8), None)}, "x"]) == 14
    pytest.importorskip("optimum.quanto")
    found = side.answer(TinyLM(), "quanto_4bit", request(peers))
    whole, group = 128 * 3 * 2 * 2 * 32, 64
    assert found.bytes_held == whole // 2 + whole // group * 2 * 4 + 2 * 3 * 2 * 2 * 32 * 4
