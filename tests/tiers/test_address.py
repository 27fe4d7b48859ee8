"""Addresses: each kind opens its tier, and what is mistyped is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.tiers.address import open_levels, open_tier, split
from tenuto.tiers.chain import Chain
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.host import HostTier
from tenuto.tiers.objects import ObjectTier
from tenuto.tiers.remote import RemoteTier


def test_each_kind_of_address_opens_its_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    disk = open_tier("disk:~/kv?max=1.5MiB")
    assert isinstance(disk, DiskTier) and disk.capacity == 3 * 2**19 and disk.folder == tmp_path / "kv"
    host = open_tier("host:?max=4096")
    assert isinstance(host, HostTier) and host.capacity == 4096
    near = open_tier("device:cpu?max=4096")
    assert isinstance(near, HostTier) and near.device == "cpu" and near.capacity == 4096
    for scheme in ("redis", "valkey", "rediss", "valkeys"):
        remote = open_tier(f"{scheme}://user:secret@localhost:1/2?timeout=0.5")
        assert isinstance(remote, RemoteTier) and remote.timeout == 0.5 and remote.name == "localhost:1"
        remote.close()
    objects = open_tier("memory://pages")
    assert isinstance(objects, ObjectTier)


def test_neighbours_of_one_codec_are_one_chain(tmp_path: Path) -> None:
    levels = open_levels(
        f"host:?max=1MiB, disk:{tmp_path}/a,disk:{tmp_path}/b?codec=int8+zstd&max=2MiB".replace("+", "%2B")
    )
    assert [str(level.codec) for level in levels] == ["raw", "int8+zstd"]
    assert isinstance(levels[0].tier, Chain) and [type(t) for t in levels[0].tier.tiers] == [HostTier, DiskTier]
    assert isinstance(levels[1].tier, DiskTier)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("dsik:/tmp", "Did you mean 'disk'"),
        ("/tmp", "no address of a tier"),
        ("", "no address of a tier"),
        ("disk:", "the place is missing"),
        ("host:/tmp", "memory has no path"),
        ("device:", "the place is missing"),
        ("device:warp", "is not here"),
        ("device:cuda:99", "is not here"),
        ("host:?max=lots", "is no size"),
        ("host:?mx=1GiB", "no option 'mx'"),
        ("host:?codec=int5", "no codec of pages"),
        ("redis://localhost?timeout=soon", "no number of seconds"),
        ("redis://localhost?no_such_option=1", "not usable"),
        ("nosuch://bucket", "object store"),
    ],
)
def test_what_is_mistyped_is_named(address: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        open_levels(address)
    assert "\n" not in str(error.value)


def test_a_tier_of_bytes_has_no_codec() -> None:
    with pytest.raises(InputError, match="names a codec"):
        open_tier("host:?codec=int8")


def test_a_comma_in_a_password_is_part_of_it() -> None:
    assert split("host:?max=1MiB,redis://user:a,b@host, disk:/a,host:") == [
        "host:?max=1MiB",
        "redis://user:a,b@host",
        " disk:/a",
        "host:",
    ]
    assert split("redis://host?password=a,b") == ["redis://host?password=a,b"]
