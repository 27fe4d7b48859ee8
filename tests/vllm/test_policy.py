from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.policies.base import ChunkStatus

from tenuto.vllm.policy import S3FIFO

NOBODY: set[object] = set()
CONTEXT = ReqContext("a")


def key(number: int) -> bytes:
    return make_offload_key(number.to_bytes(32, "big"), 0)


class Pool:
    """A pool of blocks under the policy, each request one block."""

    def __init__(self, capacity: int) -> None:
        self.policy, self.capacity, self.held = S3FIFO(capacity), capacity, 0

    def ask(self, number: int) -> bool:
        if self.policy.get(key(number)) is not None:
            self.policy.on_request_finished([[key(number)]], set(), {key(number)}, CONTEXT)
            return True
        if self.held == self.capacity:
            assert len(self.policy.evict(1, NOBODY) or ()) == 1
            self.held -= 1
        self.policy.insert(key(number), ready(number))
        self.held += 1
        return False


def ready(number: int) -> ChunkStatus:
    chunk = ChunkStatus(number)
    chunk.ref_cnt = 0
    return chunk


def lru(asked: list[int], capacity: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number in asked:
        hits += number in held
        held[number] = None
        held.move_to_end(number)
        if len(held) > capacity:
            held.popitem(last=False)
    return hits


def test_prompts_that_come_once_do_not_drive_out_those_that_come_back() -> None:
    random = np.random.default_rng(0)
    popular = random.zipf(1.2, 20_000)
    asked = [int(n) if random.random() < 0.5 else 10**9 + i for i, n in enumerate(popular)]
    pool = Pool(100)
    hits = sum(pool.ask(number) for number in asked)
    assert hits > 1.1 * lru(asked, 100)


def test_what_is_used_twice_stays_and_what_is_not_goes_first() -> None:
    pool = Pool(10)
    for number in range(10):
        pool.ask(number)
    for _ in range(2):
        pool.ask(0)
    gone = pool.policy.evict(8, NOBODY)
    assert gone is not None
    assert [chunk.chunk_id for _, chunk in gone] == list(range(1, 9))
    assert pool.policy.get(key(0)) is not None


def test_a_ghost_goes_straight_to_the_main_queue() -> None:
    pool = Pool(10)
    for number in range(11):
        pool.ask(number)  # drives out 0
    pool.ask(0)
    for number in range(20, 40):
        pool.ask(number)
    assert pool.policy.get(key(0)) is not None


def test_eviction_is_all_or_nothing_and_spares_what_is_in_use() -> None:
    policy = S3FIFO(10)
    chunks = [ready(number) for number in range(6)]
    for number, chunk in enumerate(chunks):
        policy.insert(key(number), chunk)
    chunks[0].ref_cnt, chunks[1].ref_cnt = 1, -1
    assert policy.evict(4, {key(2)}) is None
    assert policy.evict(0, NOBODY) == []
    gone = policy.evict(3, {key(2)})
    assert gone is not None
    assert [chunk.chunk_id for _, chunk in gone] == [3, 4, 5]
    assert all(policy.get(key(number)) for number in range(3))
    policy.clear()
    assert policy.get(key(0)) is None


def test_the_end_of_a_prefix_goes_before_its_beginning() -> None:
    policy = S3FIFO(4)
    keys = [key(number) for number in range(4)]
    for number, one in enumerate(keys):
        policy.insert(one, ready(number))
    policy.on_request_finished([keys], set(keys), set(), CONTEXT)
    gone = policy.evict(2, NOBODY)
    assert gone is not None
    assert [chunk.chunk_id for _, chunk in gone] == [3, 2]


def test_a_block_that_was_not_stored_after_all_can_be_removed() -> None:
    policy = S3FIFO(2)
    policy.insert(key(0), ChunkStatus(0))
    policy.remove(key(0))
    assert policy.get(key(0)) is None
    assert policy.evict(1, NOBODY) is None
