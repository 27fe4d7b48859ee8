"""A page is taken whole and undamaged, or refused: every flip, every cut, and what a forger would write."""

from __future__ import annotations

import hashlib
import json
import random
import struct

import pytest
import torch

from tenuto.errors import StoreError
from tenuto.tiers.page import FRONT, PageFacts, decode, encode

FACTS = PageFacts(model="0123456789abcdef", dtype="float32", codec="exact", start=16, stop=20)


def tensors() -> dict[str, torch.Tensor]:
    both = torch.arange(16.0).reshape(2, 2, 4)
    return {
        "0.keys": both[0],
        "0.values": both[1].T,
        "0.code": torch.tensor([1, 255], dtype=torch.uint8),
        "1.keys": torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.bfloat16),
        "1.none": torch.empty(0, 3, dtype=torch.float16),
    }


@pytest.fixture(scope="module")
def data() -> bytes:
    return encode(tensors(), FACTS)


def sealed(data: bytes) -> bytes:
    """With a right checksum, as one who means harm would write it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def test_what_goes_in_comes_out(data: bytes) -> None:
    page = decode(data)
    assert page.facts == FACTS
    assert page.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        found = page.tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8))


def test_the_same_page_is_the_same_bytes_and_its_payload_is_safetensors(data: bytes) -> None:
    from safetensors.torch import load

    assert encode(dict(reversed(tensors().items())), FACTS) == data
    _, _, header, payload = FRONT.unpack_from(data)
    assert load(data[FRONT.size + header :][:payload]).keys() == tensors().keys()


def test_every_flipped_bit_is_found(data: bytes) -> None:
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreError):
            decode(bytes(broken))


def test_every_cut_and_every_addition_is_found(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(StoreError):
            decode(data[:length])
    for more in (b"\0", data, data[-32:]):
        with pytest.raises(StoreError, match="should have"):
            decode(data + more)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(0, b"X", "does not begin"), (8, b"\2\0", "version 2"), (10, b"\1\0\1\0", "65537 bytes, 65536 allowed")],
)
def test_what_is_wrong_is_said(data: bytes, at: int, value: bytes, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        decode(sealed(data[:at] + value + data[at + len(value) :]))


def forged(fields: object, payload: bytes | None = None) -> bytes:
    page = encode(tensors(), FACTS)
    _, _, header_bytes, payload_bytes = FRONT.unpack_from(page)
    header = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    payload = page[FRONT.size + header_bytes :][:payload_bytes] if payload is None else payload
    return sealed(FRONT.pack(b"TENUTOKV", 1, len(header), len(payload)) + header + payload + bytes(32))


def test_a_right_checksum_over_a_wrong_header_or_payload_is_refused() -> None:
    good = {"model": "m", "dtype": "d", "codec": "c", "start": 0, "stop": 1, "tensors": sorted(tensors())}
    decode(forged(good))
    headers: list[object] = [b"", b"\xff", b"[" * 60_000, b"1" * 60_000, [], None, {}, {**good, "more": 1}]
    headers += [{**good, name: value} for name in good for value in (None, -1, True, "x", 1.0, [], {}) if name in good]
    allowed = [{**good, name: "x"} for name in ("model", "dtype", "codec")]
    for header in headers:
        if header not in allowed:
            with pytest.raises(StoreError):
                decode(forged(header))
    deep = struct.pack("<Q", 1000) + b"[" * 1000
    shape = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    for payload in (b"", bytes(8), b"\xff" * 8, deep, struct.pack("<Q", len(shape)) + shape):
        with pytest.raises(StoreError):
            decode(forged(good, payload))


def test_seeded_fuzz_of_bytes_with_a_right_checksum(data: bytes) -> None:
    dice = random.Random(0)
    whole, refused = data[:-32], 0
    for _ in range(4000):
        broken = bytearray(whole if dice.random() < 0.8 else dice.randbytes(dice.randrange(200)))
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(broken) + 1)
            broken[at : at + dice.randrange(4)] = dice.randbytes(dice.randrange(4))
        try:
            decode(sealed(bytes(broken) + bytes(32)))
        except StoreError:
            refused += 1
    assert refused > 2000  # the rest changed a number or a letter of a text, which no checksum was left to protect


def test_facts_and_headers_are_checked_when_written() -> None:
    for start, stop in ((3, 3), (-1, 2), (True, 2)):
        with pytest.raises(StoreError, match="0 <= start < stop"):
            PageFacts(model="m", dtype="d", codec="c", start=start, stop=stop)
    with pytest.raises(StoreError, match="64 KiB|65536 allowed"):
        encode({"x" * 70_000: torch.zeros(1)}, FACTS)
    with pytest.raises(StoreError, match="dense"):
        encode({"a": torch.eye(2).to_sparse()}, FACTS)
