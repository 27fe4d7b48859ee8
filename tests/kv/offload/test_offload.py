"""Reading from pages: exact where all are read, the same from every tier, books that add up, nothing left behind."""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import tenuto
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError, PolicyError, StoreError
from tenuto.kv.attach import attach
from tenuto.kv.offload.settings import Prefetch
from tenuto.kv.policies.knorm import Knorm
from tenuto.kv.policies.quest import Bounds, Quest
from tenuto.kv.policy import KVPolicy, TopK
from tenuto.testing.kv import TinyLM, close, follow, tokens
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.host import HostTier

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
FEW = Quest(pages=2, page=8, sinks=2, window=8)
SMALL = MemoryBudget.tokens(2 + 8 + 3 * 8)


@dataclass(frozen=True, slots=True)
class Everything(Bounds):
    """Reads all pages, and no page has room to stay in memory."""

    page: int = 8
    pages: int = 1000

    @property
    def reserve(self) -> int:
        return self.page


@pytest.mark.parametrize("prefetch", [None, Prefetch(), Prefetch(miss="timeout", timeout=60)])
def test_all_pages_are_dynamic_cache(prefetch: Prefetch | None) -> None:
    """Two rows, one padded; prompt, 30 steps, a second turn, and steps again."""
    model, length = TinyLM(), 100
    batch, mask = tokens(length, rows=2), torch.ones(2, length, dtype=torch.int64)
    batch[1, :27], mask[1, :27] = 0, 0
    policy = KVPolicy(selector=TopK(2, 8), index=Everything())
    with attach(model, policy, budget=MemoryBudget.tokens(20), prefetch=prefetch) as run:
        got = follow(model, cache := run.cache(), batch, tokens(30, 1, rows=2), mask)
        facts = run.summary()
        turns = [follow(model, cache.fork(), tokens(9, 3, rows=2), tokens(20, 4, rows=2)) for _ in range(2)]
        held = cache.counts()
    for row in range(2):
        plain = DynamicCache(config=model.config)
        real = batch[row : row + 1, mask[row].bool()]
        close(got[row], follow(model, plain, real, tokens(30, 1, rows=2)[row : row + 1])[0], "all pages are all tokens")
        if row == 0:
            again = follow(model, plain, tokens(9, 3, rows=2)[:1], tokens(20, 4, rows=2)[:1])[0]
            close(turns[0][0], again, "a second turn")
            close(turns[1][0], again, "a second turn of a fork")
    assert max(max(rows) for layer in held for rows in layer) < 2 + 8 + 8 + 1
    whole = 2 * 3 * 2 * 32 * 4  # keys and values, three layers, two heads
    assert facts["bytes_offloaded"] == whole * sum((seen - 10) // 8 * 8 for seen in (130, 103))
    assert facts["pages_fetched"] >= facts["pages_read"] - facts["hits"] > 0


def test_tiers_give_the_same_and_hold_nothing_afterwards(tmp_path: Path) -> None:
    model, found = TinyLM(), []
    with DiskTier(tmp_path, capacity=2**26) as disk:
        for tier in (HostTier(2**26), disk, None):
            with attach(model, FEW, budget=SMALL, tier=tier) as run:
                found.append(follow(model, cache := run.cache(), tokens(200), tokens(20, 1)))
                assert run.bytes_held < 0.4 * run.bytes_full
                pages = {page.name for layer in cache.engine for row in layer.paged.rows for page in row.pages}  # type: ignore[union-attr]
                assert tier is None or all(tier.contains(name) for name in pages)
                other = cache.fork()
                cache.reset()
                run.last = None
                gc.collect()
                follow(model, other, tokens(3, 2), tokens(2, 3))
                del cache, other
                run.last = None
            del run
            gc.collect()
            start = time.monotonic()
            while tier is not None and any(tier.contains(name) for name in pages):
                assert time.monotonic() - start < 60, "pages of a dead cache are discarded"
                time.sleep(0.01)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_fetched_once_and_books_add_up() -> None:
    with attach(TinyLM(), FEW, budget=MemoryBudget.tokens(2 + 8 + 5 * 8)) as run:
        follow(run.model, run.cache(), tokens(200), tokens(20, 1))
        facts = run.summary()
    assert facts["pages_read"] == 20 * 3 * 2
    assert facts["hits"] + facts["pages_fetched"] == facts["pages_read"] and facts["hits"] > 0
    assert facts["stall_s"] > 0 and facts["pages_skipped"] == 0 and facts["dropped_mass"] == 0


def test_a_page_that_is_gone_is_an_error_and_never_zeros() -> None:
    class Forgetful(HostTier):
        def get(self, key: str) -> bytes | None:
            return None

    with attach(TinyLM(), FEW, budget=SMALL, tier=Forgetful(2**26)) as run:
        with pytest.raises(StoreError, match="gave no page"):
            follow(run.model, run.cache(), tokens(200), tokens(20, 1))
    with attach(TinyLM(), FEW, budget=SMALL, tier=HostTier(10)) as run:
        with pytest.raises(StoreError, match="does not fit"):
            run.model(tokens(200))


def test_assisted_decoding_and_saving(tmp_path: Path) -> None:
    prompt, model = torch.cat([tokens(40)] * 4, 1), TinyLM()
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    plain = model.generate(prompt, **options)
    with attach(model, FEW, budget=MemoryBudget.keep(1)) as run:
        assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=4, **options), plain)
    with attach(model, FEW, budget=SMALL) as run:
        assert model.generate(prompt, prompt_lookup_num_tokens=4, **options).shape == plain.shape
        assert run.summary()["pages_read"] > 0 or run.summary()["bytes_offloaded"] > 0
        assert run.last is not None
        with pytest.raises(tenuto.AttachError, match="take back"):
            run.last.crop(-40)
        cache = copy.deepcopy(run.last)
        run.save(tmp_path / "cache", cache)
        loaded = run.load(tmp_path / "cache")
        assert loaded.survivors(1) == cache.survivors(1) == list(range(cache.sequences.columns))
        steps = tokens(12, 3)
        assert torch.equal(follow(model, cache, steps[:, :1], steps), follow(model, loaded, steps[:, :1], steps))


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"leave out the other choices \(codec\)"):
        tenuto.catalog.parse("quest+kivi:bits=4", "kv")
    with pytest.raises(PolicyError, match=r"\(scorer\)"):
        KVPolicy(scorer=Knorm(), index=Bounds())
    with pytest.raises(InputError, match="Leave them out"):
        with attach(TinyLM(), Knorm(), budget=SMALL, tier=HostTier(2**20)):
            pass
    with pytest.raises(InputError, match="keeps at least 34"):
        with attach(TinyLM(), FEW, budget=MemoryBudget.tokens(33)):
            pass
    with pytest.raises(InputError, match="for KV policies"):
        tenuto.attach(None, tenuto.EveryN(), prefetch=Prefetch())  # type: ignore[call-overload]
    with pytest.raises(InputError, match="miss="):
        Prefetch(miss="never")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="margin"):
        Prefetch(margin=0.5)
