"""The tier under vLLM's own managers, host pool and keys; no engine, no model."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.manager import CPUPrimaryTierOffloadingManager, TieringOffloadingManager

from tenuto.errors import InputError
from tenuto.vllm.plugin import register

ROW, SLOTS = 8192, 12
KEYS = [make_offload_key(bytes([i]) * 32, 0) for i in range(10)]
ROWS = np.random.default_rng(0).integers(0, 255, (len(KEYS), ROW), np.uint8)
NOTHING = ScheduleEndContext((), ())


def config(engine: str, dtype: str = "bfloat16", tp: int = 1) -> OffloadingConfig:
    return OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("layer",), 0),),
        worker_kv_bytes_per_block=ROW,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id=engine,
        model=OffloadingModelConfig("model", dtype),
        cache=OffloadingCacheConfig(16, 1),
        parallel=OffloadingParallelConfig(0, tp, tp, 1, 1, 1, 0, 1, None, False),
    )


class Engine:
    """A host pool, the tier behind it, and vLLM's manager of both."""

    def __init__(self, address: str | list[str], dtype: str = "bfloat16", tp: int = 1, **options: Any) -> None:
        register()
        name = f"test-{uuid.uuid4()}"
        region = SharedOffloadRegion(name, SLOTS, None, ROW, ROW)
        self.primary = CPUPrimaryTierOffloadingManager(SLOTS, region, cache_policy="s3fifo")
        told = {"type": "tenuto", "address": address, "revision": "1", **options}
        spec = SimpleNamespace(config=config(name, dtype, tp))
        try:
            self.tier: Any = SecondaryTierFactory.create_secondary_tier(told, self.primary.get_kv_memoryview(), spec)
        except InputError:
            self.primary.shutdown()
            raise
        self.manager = TieringOffloadingManager(self.primary, [self.tier])
        self.rows = region.base_tensor.view(SLOTS, ROW).numpy().view(np.uint8)
        self.requests = 0

    def request(self) -> ReqContext:
        self.requests += 1
        context = ReqContext(f"request-{self.requests}")
        self.manager.on_new_request(context)
        return context

    def step_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline
            self.manager.on_schedule_end(NOTHING)
            time.sleep(0.001)

    def store(self, keys: list[Any], rows: np.ndarray) -> None:
        context = self.request()
        told = self.manager.prepare_store(keys, context)
        assert told is not None
        for key, slot in zip(told.keys_to_store, told.store_spec.chunk_ids, strict=True):
            self.rows[slot] = rows[KEYS.index(key)]
        self.manager.complete_store(told.keys_to_store, context)
        self.step_until(lambda: not self.manager.has_pending_work())
        self.manager.on_request_finished(context)

    def load(self, keys: list[Any]) -> list[np.ndarray | None]:
        """What an engine would find, block by block; None is to be computed."""
        context, found = self.request(), {}

        def settled() -> bool:
            for key in keys:
                found[key] = self.manager.lookup(key, context)
            return not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(found.values())

        self.step_until(settled)
        there = [key for key in keys if found[key] is LookupResult.HIT]
        slots = dict(zip(there, self.manager.prepare_load(there, context).chunk_ids, strict=True))
        rows = [self.rows[slots[key]].copy() if key in slots else None for key in keys]
        self.manager.complete_load(there, context)
        self.manager.on_request_finished(context)
        return rows

    def close(self) -> None:
        self.rows = np.empty(0)
        self.manager.shutdown()


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """Makes engines, and closes them: their pools are files in shared memory."""
    made: list[Engine] = []

    def make(*args: Any, **options: Any) -> Engine:
        made.append(Engine(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not list(Path("/dev/shm").glob("vllm_offload_test-*"))


@pytest.fixture
def disk(tmp_path: Path) -> str:
    return f"disk:{tmp_path / 'store'}?max=64MiB"


def same(found: list[np.ndarray | None], wanted: np.ndarray) -> bool:
    return all(row is not None and np.array_equal(row, true) for row, true in zip(found, wanted, strict=True))


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("where", ["disk", "server", "both"])
def test_another_engine_gets_every_bit(
    engine: Callable[..., Engine], disk: str, server: str, codec: str, where: str
) -> None:
    address = {"disk": disk, "server": server, "both": [disk, server]}[where]
    salt = f"{codec}-{where}"
    engine(address, codec=codec, salt=salt).store(KEYS, ROWS)
    assert same(engine(address, codec=codec, salt=salt).load(KEYS), ROWS)
    assert same(engine(server, codec=codec, salt=salt).load(KEYS), ROWS) == (where != "disk")


def test_int8_comes_back_close(engine: Callable[..., Engine], disk: str) -> None:
    import torch

    rows = torch.randn(len(KEYS), ROW // 2).bfloat16()
    engine(disk, codec="int8").store(KEYS, rows.view(torch.uint8).numpy())
    for found, row in zip(engine(disk, codec="int8").load(KEYS), rows, strict=True):
        assert found is not None
        assert (torch.from_numpy(found).view(torch.bfloat16) - row).abs().max() < 0.03


@pytest.mark.parametrize(
    "other", [{"salt": "b"}, {"codec": "zstd"}, {"dtype": "float16"}, {"tp": 2}, {"revision": "2"}]
)
def test_a_different_engine_gets_nothing(engine: Callable[..., Engine], disk: str, other: dict[str, Any]) -> None:
    engine(disk).store(KEYS, ROWS)
    assert engine(disk, **other).load(KEYS) == [None] * len(KEYS)


def test_a_damaged_block_is_computed_and_stored_again(engine: Callable[..., Engine], disk: str, tmp_path: Path) -> None:
    engine(disk).store(KEYS, ROWS)
    (segment,) = (tmp_path / "store").glob("*.seg")
    data = bytearray(segment.read_bytes())
    place = data.find(ROWS[3].tobytes())
    data[place + 100] ^= 1
    segment.write_bytes(data)
    second = engine(disk)
    with pytest.warns(RuntimeWarning, match="damaged"):
        found = second.load(KEYS)
        assert found[3] is None
        assert same(found[:3] + found[4:], np.delete(ROWS, 3, 0))
        second.store(KEYS, ROWS)
    assert same(engine(disk).load(KEYS), ROWS)


def test_a_foreign_page_under_the_right_key_is_not_taken(engine: Callable[..., Engine], server: str) -> None:
    first = engine(server, salt="foreign")
    first.store(KEYS[:2], ROWS)
    names = [first.tier._names.name(key) for key in KEYS[:2]]
    tier = first.tier._tier
    pages = tier.get_many(names)
    tier.put(names[0], pages[1])
    tier.put(names[1], b"")
    with pytest.warns(RuntimeWarning, match="no page of this block"):
        assert engine(server, salt="foreign").load(KEYS[:2]) == [None, None]
    assert not tier.contains(names[0])


def test_a_dead_server_costs_nothing_but_the_hits(engine: Callable[..., Engine]) -> None:
    alone = engine("redis://127.0.0.1:1/0")
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        alone.store(KEYS, ROWS)
        assert same(alone.load(KEYS), ROWS)  # from the host pool
        assert engine("redis://127.0.0.1:1/0").load(KEYS) == [None] * len(KEYS)


def test_a_block_with_a_short_hash_is_not_kept(engine: Callable[..., Engine], disk: str) -> None:
    short = make_offload_key(b"\1" * 16, 0)
    first = engine(disk)
    context = first.request()
    told = first.manager.prepare_store([short], context)
    first.manager.complete_store([short], context)
    first.step_until(lambda: not first.manager.has_pending_work())
    assert told is not None
    assert first.tier._tier.bytes_used() == 0
    assert engine(disk).load([short]) == [None]


@pytest.mark.parametrize("bad", [{"codec": "zip"}, {"threads": 0}, {"address": "file:x"}, {"revision": ""}])
def test_wrong_options_are_said_at_the_start(engine: Callable[..., Engine], disk: str, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        engine(**{"address": disk} | bad)
