"""Decoding in batches: how many operations a layer takes, whatever rows and heads hold; room that grows; eviction."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.kv.attach import attach
from tenuto.kv.decode import decode
from tenuto.kv.entries import Held, Store
from tenuto.kv.policies.h2o import H2O
from tenuto.kv.policies.streaming_llm import StreamingLLM
from tenuto.kv.policy import Entries
from tenuto.kv.reference import reference
from tenuto.kv.slots import SLACK, places, sizes_for
from tenuto.testing.kv import TinyLM, close, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")
STEPS = 32
"""Tokens decoded, counted together: what is done every so many tokens, at most 32, is shared out among them."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched, views too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def operations(
    policy: str | None, rows: int, padded: bool, steps: int = STEPS, keep: float = 0.3
) -> tuple[float, float]:
    """Operations per token and layer, and reads back to the host per token."""
    model, prompt = TinyLM(), tokens(150, rows=rows)
    mask = torch.ones_like(prompt)
    for row in range(1, rows) if padded else ():
        mask[row, : 7 * row % 80] = 0
    method = None if policy is None else catalog.parse(policy, "kv")
    with attach(model, method, budget=MemoryBudget.keep(keep)) if method else nullcontext() as run:  # type: ignore[arg-type]
        cache: Any = run.cache() if run else DynamicCache(config=model.config)
        follow(model, cache, prompt * mask, tokens(2, 1, rows=rows), mask)
        mask = torch.cat([mask, mask.new_ones(rows, 2)], 1)
        with Operations() as counted:
            for step in range(steps):
                mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
                where = mask.sum(-1, keepdim=True) - 1
                model(tokens(1, step, rows), attention_mask=mask, position_ids=where, past_key_values=cache)
    reads = sum(counted.seen[name] for name in READS)
    return sum(counted.seen.values()) / steps / model.config.num_hidden_layers, reads / steps


MOST = {"knorm": 1.5, "adakv:window=8": 1.5, "kvzip": 1.5, "kvmerger": 1.7, "h2o": 3.2, "streaming_llm": 2.5}


@pytest.mark.parametrize(("policy", "most"), MOST.items())
def test_operations_do_not_depend_on_the_batch(policy: str, most: float) -> None:
    for rows, padded in ((1, False), (32, True)):
        plain, _ = operations(None, rows, padded, steps=2)
        found, reads = operations(policy, rows, padded)
        assert found <= most * plain, (rows, padded, found / plain)
        assert reads <= 1 + (not padded), "one beside the one that transformers makes of a mask that hides nothing"


CODECS = {"think": (2.5, 3.5, 7), "kivi:bits=4": (2.5, 4.0, 10)}
"""At one row, at eight of one length, and at eight of different lengths, which are still attended row by row."""


@pytest.mark.parametrize(("policy", "most"), CODECS.items())
def test_codecs_take_rows_of_one_length_together(policy: str, most: tuple[float, float, float]) -> None:
    for (rows, padded), limit in zip(((1, False), (8, False), (8, True)), most, strict=True):
        plain, _ = operations(None, rows, padded, steps=2)
        found, reads = operations(policy, rows, padded, steps=8, keep=1)
        assert found <= limit * plain, (rows, padded, found / plain)
        assert reads <= 1, "the one that transformers makes of a mask"


def test_sizes_leave_little_over() -> None:
    draw = torch.Generator().manual_seed(0)
    for count in (1, 4, 64):
        for most in (3, 40, 700, 9000):
            wanted = torch.randint(0, most, (count,), generator=draw).tolist()
            sizes, block = sizes_for(wanted)
            assert all(size >= want for size, want in zip(sizes, wanted, strict=True))
            assert all(size % block == 0 for size in sizes) if block else len(set(sizes)) == 1
            assert sum(sizes) * SLACK <= sum(wanted) * (SLACK + 1)
    assert places([4, 9], [2, 3], torch.device("cpu")).tolist() == [4, 5, 9, 10, 11]


def store_of(lengths: list[int], weighted: bool, spare: int) -> Store:
    draw, parts = torch.Generator().manual_seed(1), []
    for length in lengths:
        weights = torch.randint(1, 5, (length,), generator=draw).float() if weighted else None
        keys, values = torch.randn(2, length, 16, generator=draw)
        parts.append(Entries(keys, values, torch.arange(length, dtype=torch.int32), weights))
    store = Store(len(lengths) // 2, 2, 1, parts)
    store.spare = spare
    return store


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", [[200, 40, 3, 77], [60, 60, 60, 60], [60, 59, 60, 60]], ids=str)
def test_one_token_after_another_is_the_reference(lengths: list[int], weighted: bool, softcap: float | None) -> None:
    """Appended token by token, over several growths; a watch sees shares that add up to one for every query."""
    store, draw = store_of(lengths, weighted, spare=3), torch.Generator().manual_seed(2)
    held, seen = Held(store, None, [None] * len(lengths), {}), list[torch.Tensor]()
    for number in range(9):
        keys, values = torch.randn(2, 2, 2, 1, 16, generator=draw)
        query, index = torch.randn(2, 6, 1, 16, generator=draw), torch.tensor([number + 200], dtype=torch.int32)
        store.append(keys, values, index, None)
        slow = reference(query, held, valid=None, scaling=0.3, softcap=softcap)
        limit = torch.finfo(torch.float32).eps * (16 + max(store.lengths))  # a score and so many values, of size 1
        for watch in (None, seen.append):
            torch.testing.assert_close(decode(query, store, 0.3, softcap, watch), slow, atol=limit, rtol=1e-5)
        assert float(seen.pop().sum()) == pytest.approx(12)
    assert store.lengths == [length + 9 for length in lengths]
    assert [store.entries(segment).index[-9:].tolist() for segment in range(4)] == [list(range(200, 209))] * 4
    assert all(not bool(store.entries(segment).state.any()) for segment in range(4))  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", [H2O(), StreamingLLM(every=4)], ids=lambda policy: type(policy).__name__)
def test_rows_evict_together_as_alone(policy: H2O | StreamingLLM) -> None:
    """Rows of different lengths keep the entries, and write the logits, that they would keep and write alone; what is
    held stays as large as it was."""
    lengths, steps = (90, 61), tokens(60, 7, rows=2)
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]
    batch, mask = torch.zeros(2, 90, dtype=torch.int64), torch.zeros(2, 90, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        batch[row, 90 - lengths[row] :], mask[row, 90 - lengths[row] :] = prompt[0], 1
    with attach(model := TinyLM(), policy, budget=MemoryBudget.tokens(40)) as run:
        together = follow(model, cache := run.cache(), batch, steps, mask)
        for row, prompt in enumerate(prompts):
            alone = follow(model, single := run.cache(), prompt, steps[row : row + 1])
            close(together[row], alone[0], f"row {row} as alone")
            for layer in range(3):
                kept = [number - 90 + lengths[row] for number in cache.survivors(layer, row)]
                assert kept == single.survivors(layer)
        sizes = [tuple(layer.holding().store.sizes) for layer in cache.engine]
        follow(model, cache, tokens(1, 3, rows=2), tokens(40, 4, rows=2))
        assert sizes == [tuple(layer.holding().store.sizes) for layer in cache.engine]
