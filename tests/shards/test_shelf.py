"""Coded pages: bytes held are the codec's, what is read is what it gives back, recent and open pages are raw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_sharded import mild
from transformers import DynamicCache

from tenuto.errors import AttachError, InputError
from tenuto.shards import Expert, KeyCluster, RoundRobin, Schedule, Summary, shard
from tenuto.shards.shelf import ShardPages
from tenuto.testing.kv import TOLERANCE, follow, tokens
from tenuto.tiers.codec import PageCodec

pytestmark = pytest.mark.usefixtures("one_thread")
CODECS = ("fp8", "int8", "int4", "delta8")
SHARE = {"fp8": 0.25, "int8": 0.25 + 4 / 32 / 4 * 2, "delta8": 0.26, "int4": 0.125 + 4 / 32 / 4 * 2}
"""Of float32, with float16 scales: a pair for 16 numbers."""


def held(cache: Any) -> list[torch.Tensor]:
    """Keys that are read, of the first row and layer."""
    layer = cache.engine[0]
    return [shelf.read(layer.tables[0].index[layer.tables[0].of(s)] >= 0)[0] for s, shelf in layer.shelves[0].items()]


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_bytes_are_the_codecs(codec: str) -> None:
    model, prompt, steps = mild("olmoe"), tokens(400, rows=2), tokens(5, 1, rows=2)
    with shard(model, RoundRobin(), shards=2) as run:
        wanted, whole = follow(model, run.cache(), prompt, steps), run.summary()["bytes_held"]
    with shard(model, RoundRobin(), shards=2, codec=codec, recent=50) as run:
        cache = run.cache()
        found, facts = follow(model, cache, prompt, steps), run.summary()
    old = (405 - 50) // 16 * 16
    assert facts["bytes_held"] == pytest.approx(whole * (1 - old / 416 * (1 - SHARE[codec])), rel=0.03)
    gap = (found - wanted).abs().max() / wanted.abs().max()
    assert 1e-5 < gap < {"int4": 0.6, "fp8": 0.1}.get(codec, 0.02), gap  # a random model: nothing is redundant
    for table in cache.engine[0].tables:
        newest, full = table.index.amax(-1), table.counts == 16
        assert torch.equal(table.coded, full & (newest < 405 - 50)) and int(table.coded.sum()) == old // 16
    assert facts["codec"] == codec


def test_raw_is_bit_exact_and_only_old_full_pages_change() -> None:
    model, prompt, steps = mild("qwen3_moe"), tokens(90, rows=2), tokens(8, 1, rows=2)
    with shard(model, KeyCluster(page=8), shards=2) as run:
        wanted = follow(model, run.cache(), prompt, steps)
    for options in ({"codec": "raw", "recent": 0}, {"codec": "int4", "recent": 98}):
        with shard(model, KeyCluster(page=8), shards=2, **options) as run:
            assert torch.equal(follow(model, run.cache(), prompt, steps), wanted), options
    with shard(model, RoundRobin(page=8), codec="int4", recent=16) as run, torch.no_grad():
        cache = run.cache()
        model(prompt[:1], past_key_values=cache)
    plain = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt[:1], past_key_values=plain)
    keys, true = held(cache)[0], plain.layers[0].keys[0]
    raw = keys.shape[1] - 72  # 9 pages are older than the 16 last tokens; raw ones come first
    assert raw == 90 - 72 and torch.equal(keys[:, :raw], true[:, 72:])
    codec = PageCodec("int4")
    pages = [codec.encode(page[None], page[None]) for page in true[:, :72].split(8, 1)]
    coded = torch.cat([codec.decode(page, true.dtype)[0][0] for page in pages], 1)
    assert torch.equal(keys[:, raw:], coded) and not torch.equal(coded, true[:, :72])


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_tiers_forks_and_turns_read_the_same_codes(codec: str) -> None:
    model, prompt, steps = mild("olmoe"), tokens(150, rows=2), tokens(12, 1, rows=2)
    few: dict[str, Any] = {"selector": Summary(keep=0.25, sinks=2, window=4), "codec": codec, "recent": 20}
    for placement in (RoundRobin(page=4), Expert(page=4)):
        with shard(model, placement, shards=2, **few) as run:
            wanted = follow(model, run.cache(), prompt, steps)
        with shard(model, placement, shards=2, schedule=Schedule(resident=0.4, slack=1), **few) as run:
            cache = run.cache()
            assert (follow(model, cache, prompt, steps) - wanted).abs().max() <= TOLERANCE
            facts = run.summary()
            assert facts["pages_fetched"] > 0 and facts["bytes_below"] > 0
            again = [follow(model, c, tokens(9, 5, rows=2), tokens(4, 6, rows=2)) for c in (cache.fork(), cache)]
            assert torch.equal(again[0], again[1])
    with shard(model, RoundRobin(page=4), shards=2, codec=codec, recent=20) as run:
        single = run.cache()
        rows = follow(model, single, prompt, steps)
    with shard(model, RoundRobin(page=4), shards=4, codec=codec, recent=20) as run:
        other = follow(model, run.cache(), prompt[1:], steps[1:])
    assert (rows[1:] - other).abs().max() <= TOLERANCE, "rows and shards do not matter to a page"


def test_what_is_coded_stays_where_pages_are_forgotten() -> None:
    codec = PageCodec("int8")
    keys, values = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    shelf = ShardPages(4, keys, values, codec)
    at = torch.arange(12)
    shelf.put(3, at // 4, at % 4, keys, values)
    shelf.encode([1, 2])
    shelf.keep(torch.tensor([False, True, True]))
    read = shelf.read(torch.tensor([[False] * 4, [True, False, True, False]]))
    for found, true in zip(read, (keys, values), strict=True):
        assert (found - true[:, [8, 10]]).abs().max() < 0.02 and shelf.keys.shape[1] == 0


def test_what_cannot_be_is_said() -> None:
    model = mild("llama")
    for options, said in (
        ({"codec": "int3"}, "Did you mean 'int"),
        ({"codec": "int4+zstd"}, "without zstd"),
        ({"codec": "int4", "recent": -1}, "recent=-1"),
    ):
        with pytest.raises(InputError, match=said), shard(model, RoundRobin(), **options):  # type: ignore[arg-type]
            pass
    with shard(model, RoundRobin(page=4), codec="int8", recent=8) as run, torch.no_grad():
        model(tokens(40), past_key_values=(cache := run.cache()))
        cache.crop(-8)
        with pytest.raises(AttachError, match="larger recent="):
            cache.crop(-2)
