"""Records: what is not exactly what was packed is not given back."""

from __future__ import annotations

import pytest

from tenuto.errors import StoreError
from tenuto.tiers.record import DEAD, LIVE, cut, pack, parse, unpack


def test_every_flip_and_every_cut_of_a_record_is_a_miss() -> None:
    whole = pack("key", b"some data")
    assert unpack("key", whole) == b"some data"
    assert unpack("other", whole) is None
    assert unpack("key", whole + b"x") is None
    for bit in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        assert unpack("key", bytes(broken)) is None
    assert not any(unpack("key", whole[:length]) for length in range(len(whole)))


def test_no_flip_brings_a_dead_record_back() -> None:
    assert not any(DEAD ^ 1 << bit == LIVE for bit in range(8))


def test_a_cut_head_is_told_from_a_damaged_one() -> None:
    whole = pack("a longer key", b"")
    assert all(parse(whole[:n]) is None and cut(whole[:n]) for n in range(len(whole)))
    assert not cut(b"\xff" * 22 + b"\0" * (1 << 16))
    assert not cut(whole)


def test_keys_have_a_length() -> None:
    for key in ("", "é" * 513):
        with pytest.raises(StoreError, match="1 to 1024"):
            pack(key, b"")
    assert unpack("é" * 512, pack("é" * 512, b"")) == b""
