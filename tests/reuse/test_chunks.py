"""ChunkStore: what comes back is what was put; damage is a miss that mends itself; no page of a prefix is a chunk."""

from __future__ import annotations

import pytest
import torch
from reuse_kv import chunks, entries, gap

from tenuto.errors import StoreError
from tenuto.reuse.chunks import ChunkStore
from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.testing.kv import TinyLM
from tenuto.tiers.host import HostTier
from tenuto.tiers.key import KeySpace

pytestmark = pytest.mark.usefixtures("one_thread")
CHUNK = [5, 6, 7]
SIZES = [(2, 4)] * 12
FACTS = {"model": "m", "dtype": torch.float32, "sizes": SIZES}


def layers() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.rand(2, 3, 4), torch.rand(2, 3, 4)) for _ in range(12)]


def test_a_chunk_comes_back_as_it_was() -> None:
    store, put = ChunkStore(HostTier(10**6)), layers()
    store.put(CHUNK, put, model="m")
    assert store.get([CHUNK, [5, 6], [5, 6, 8]], model="m", dtype=torch.bfloat16, sizes=SIZES) == [None] * 3
    (found, *others) = store.get([CHUNK, [5, 6], [5, 6, 8]], **FACTS)  # type: ignore[arg-type]
    assert found is not None
    assert gap(found, put) == 0
    assert others == [None, None]
    assert (store.hits, store.misses) == (1, 5)


def test_damage_is_a_miss_and_computed_again() -> None:
    model, tier = TinyLM(), HostTier(10**8)
    store = ChunkStore(tier)
    right = entries(model, Concatenate(), store)
    for key, data in list(tier._pages.items()):
        tier._pages[key] = data[:-40] + bytes(8) + data[-32:]
    assert gap(entries(model, Concatenate(), store), right) == 0
    assert store.misses == 2 * len(chunks())
    entries(model, Concatenate(), store)
    assert store.hits == len(chunks()), "the damaged pages were replaced"


def test_a_prefix_page_of_the_same_tokens_has_another_name() -> None:
    tier = HostTier(10**6)
    ChunkStore(tier, tenant="t").put(CHUNK, layers(), model="m")
    space = KeySpace(model="m", tokenizer="", adapter="", dtype="torch.float32", codec="plain", tenant="t")
    assert not any(tier.contains(key) for key in space.keys(CHUNK, 3))
    marked = KeySpace(model="m", tokenizer="", adapter="", dtype="torch.float32", codec="chunk", tenant="t")
    assert all(tier.contains(key) for key in marked.keys(CHUNK, 3)), "only the mark tells them apart"


def test_a_tier_that_is_too_small_says_so() -> None:
    with pytest.raises(StoreError, match="does not fit"):
        entries(TinyLM(), Concatenate(), ChunkStore(HostTier(100)))
