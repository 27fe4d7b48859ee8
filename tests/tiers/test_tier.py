"""The contract, for every tier: what is put comes back, the least recently used goes first, threads do not mix."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tenuto.errors import InputError, StoreError
from tenuto.tiers.chain import Chain
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.host import HostTier
from tenuto.tiers.objects import ObjectTier
from tenuto.tiers.remote import RemoteTier
from tenuto.tiers.tier import Tier

Make = Callable[[int], Tier]
KINDS = ["host", "device", "disk", "chain", pytest.param("remote", marks=pytest.mark.processes), "objects", "bucket"]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a tier of a capacity in bytes; the server's is its own."""
    if request.param == "remote":
        url = request.getfixturevalue("server")
        return lambda capacity: RemoteTier(url, timeout=10.0)
    makers: dict[str, Make] = {
        "host": HostTier,
        "device": lambda capacity: HostTier(capacity, device="cpu"),
        "disk": lambda capacity: DiskTier(tmp_path, capacity=capacity),
        "objects": lambda capacity: ObjectTier(f"file://{tmp_path}/pages"),
        "bucket": lambda capacity: ObjectTier(f"memory://{tmp_path}"),
        "chain": lambda capacity: Chain([HostTier(capacity // 2), DiskTier(tmp_path, capacity=capacity)]),
    }
    return makers[request.param]


def test_what_is_put_comes_back_until_discarded(make: Make) -> None:
    with make(1 << 20) as tier:
        before = tier.bytes_used()
        pages = {f"{i}-é": bytes([i]) * i * 100 for i in range(20)}
        for key, data in pages.items():
            assert tier.get(key) is None and not tier.contains(key)
            tier.put(key, data)
            assert tier.get(key) == data and tier.contains(key)
        assert tier.bytes_used() >= before + sum(map(len, pages.values()))
        assert pages.keys() <= set(tier.keys())
        assert tier.get_many(["3-é", "none", "3-é", "0-é"]) == [pages["3-é"], None, pages["3-é"], b""]
        assert tier.get_many([]) == []
        for key in ("3-é", "none", "3-é"):
            tier.discard(key)
        assert tier.get("3-é") is None and not tier.contains("3-é") and "3-é" not in set(tier.keys())
        assert tier.get("4-é") == pages["4-é"]
        tier.put("3-é", b"again")
        assert tier.get("3-é") == b"again"


def test_threads_do_not_mix_pages(make: Make) -> None:
    def work(seed: int) -> int:
        dice, hits = random.Random(seed), 0
        for _ in range(150):
            key = str(dice.randrange(40))
            data = key.encode() * 50
            if dice.random() < 0.5:
                tier.put(key, data)
            elif dice.random() < 0.1:
                tier.discard(key)
            elif (found := tier.get(key)) is not None:
                assert found == data
                hits += 1
        return hits

    with make(4000) as tier, ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 20


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_a_full_tier_drops_the_least_recently_used(kind: str, tmp_path: Path) -> None:
    tier = HostTier(1000) if kind == "host" else DiskTier(tmp_path, capacity=1300)
    for key in "abcde":
        tier.put(key, key.encode() * 200)
    assert tier.get("a") is not None
    tier.put("b", b"b" * 200)
    tier.put("f", b"f" * 200)
    assert [key for key in "abcdef" if tier.contains(key)] == ["a", "b", "d", "e", "f"]
    with pytest.raises(StoreError, match="does not fit"):
        tier.put("g", bytes(1301))
    assert tier.get_many("abdef") == [key.encode() * 200 for key in "abdef"]
    assert tier.bytes_used() <= (1000 if kind == "host" else 1300)


def test_a_chain_promotes_and_outlives_its_upper_tiers(tmp_path: Path) -> None:
    host, disk = HostTier(250), DiskTier(tmp_path, capacity=10_000)
    chain = Chain([host, disk])
    for key in "abc":
        chain.put(key, key.encode() * 100)
    assert [host.contains(key) for key in "abc"] == [False, True, True]
    assert chain.get_many(["a", "c", "x"]) == [b"a" * 100, b"c" * 100, None]
    assert host.contains("a") and all(disk.contains(key) for key in "abc")
    chain.discard("a")
    assert not host.contains("a") and not disk.contains("a")
    assert chain.bytes_used() == host.bytes_used() + disk.bytes_used()


def test_a_chain_stores_where_it_can_and_says_so_once(tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, capacity=10_000)
    chain = Chain([HostTier(100), disk])
    with pytest.warns(RuntimeWarning, match="does not fit into 100") as caught:
        chain.put("a", bytes(200))
        chain.put("b", bytes(200))
        assert chain.get("a") == bytes(200)
    assert len(caught) == 1
    with pytest.raises(StoreError, match="No tier took the page"):
        chain.put("c", bytes(20_000))


def test_impossible_tiers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (
        lambda: HostTier(-1),
        lambda: Chain([]),
        lambda: DiskTier(tmp_path, capacity=0),
        lambda: DiskTier(tmp_path / "file", capacity=1),
        lambda: RemoteTier("http://localhost"),
        lambda: RemoteTier("redis://localhost:1", timeout=0),
    ):
        with pytest.raises(InputError):
            wrong()
