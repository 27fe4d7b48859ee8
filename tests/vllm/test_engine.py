"""Real engines on the CPU, each in a process of its own: what one has computed, another need not."""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODEL = os.environ.get("TENUTO_VLLM_MODEL", "")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PREFIX = [random.Random(0).randrange(1000, 40000) for _ in range(1500)]
QUESTION = list(range(500, 516))
BLOCK = 32
WHOLE = (len(PREFIX) + len(QUESTION) - 1) // BLOCK * BLOCK  # a prompt's last token is always computed
Engines = Callable[..., AbstractContextManager[Any]]

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not MODEL, reason="`make test-vllm` sets TENUTO_VLLM_MODEL")]


@pytest.fixture(scope="module")
def client() -> Iterator[ModuleType]:
    """``benchmarks/vllm_tiers/client.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("vllm_tiers.client")


@pytest.fixture
def engine(client: ModuleType, tmp_path: Path) -> Engines:
    """Engines in float32, where sums in another order do not change the text."""

    @contextmanager
    def start(tiers: dict[str, Any], model: str = MODEL, tp: int = 1) -> Iterator[Any]:
        given = {"model": model, "dtype": "float32", "block_size": BLOCK, "connector": tiers, "tp": tp}
        with client.engine(sys.executable, given, tmp_path / "engine.log") as started:
            yield started

    return start


@pytest.fixture(autouse=True)
def no_pool_stays() -> Iterator[None]:
    """A pool is a file in shared memory, which must go with its engine."""
    before = set(Path("/dev/shm").glob("vllm_offload_*"))
    yield
    assert set(Path("/dev/shm").glob("vllm_offload_*")) <= before


def damage(store: Path) -> None:
    """Flip a bit in the middle of every segment and cut the end off."""
    for segment in store.glob("*.seg"):
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data[:-10])


def test_a_second_process_reloads_and_a_third_recomputes_what_is_damaged(
    client: ModuleType, engine: Engines, tmp_path: Path
) -> None:
    tiers = client.connector(f"disk:{tmp_path / 'store'}?max=1GiB", "raw")
    with engine(tiers) as first:
        cold = first.ask(PREFIX + QUESTION, 8)
        first.ask(QUESTION, 8, pause=5)  # it hands over what it has computed in the steps that follow
    with engine(tiers) as second:
        second.ask(QUESTION, 1)
        warm = second.ask(PREFIX + QUESTION, 8)
    assert cold["cached"] == 0
    assert warm["cached"] == WHOLE
    assert warm["tokens"] == cold["tokens"]
    assert all(abs(warm["logprobs"][key] - value) < 1e-3 for key, value in list(cold["logprobs"].items())[:5])
    assert warm["seconds"] < cold["seconds"] / 2

    damage(tmp_path / "store")
    with engine(tiers) as third:
        healed = third.ask(PREFIX + QUESTION, 8)
    assert 0 < healed["cached"] < WHOLE
    assert (healed["tokens"], healed["text"], healed["finish"]) == (cold["tokens"], cold["text"], "length")


def test_two_engines_share_one_server(client: ModuleType, engine: Engines, server: str) -> None:
    tiers = client.connector(server, "zstd")
    with engine(tiers) as first, engine(tiers) as second:
        cold = first.ask(PREFIX + QUESTION, 8)
        first.ask(QUESTION, 8, pause=5)  # it hands over what it has computed in the steps that follow
        warm = second.ask(PREFIX + QUESTION, 8)
        assert warm["cached"] == WHOLE
        assert warm["tokens"] == cold["tokens"]
        assert first.ask(PREFIX + QUESTION[::-1], 8)["tokens"] == second.ask(PREFIX + QUESTION[::-1], 8)["tokens"]


def two_heads(folder: Path) -> str:
    """A Llama folder with random weights and a number of heads that two ranks can share."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return str(folder)


def test_two_ranks_reload(client: ModuleType, engine: Engines, tmp_path: Path) -> None:
    tiers = client.connector(f"disk:{tmp_path / 'store'}?max=1GiB", "raw")
    model = two_heads(tmp_path / "model")
    with engine(tiers, model, tp=2) as first:
        cold = first.ask(PREFIX + QUESTION, 8)
        first.ask(QUESTION, 8, pause=5)  # it hands over what it has computed in the steps that follow
    with engine(tiers, model, tp=2) as second:
        warm = second.ask(PREFIX + QUESTION, 8)
    with engine(tiers, model) as alone:
        other = alone.ask(PREFIX + QUESTION, 8)
    assert (cold["cached"], warm["cached"], other["cached"]) == (0, WHOLE, 0)
    assert warm["tokens"] == cold["tokens"] == other["tokens"]
