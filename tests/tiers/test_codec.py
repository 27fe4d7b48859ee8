"""Codecs of pages: exact ones give every bit back, others stay within their step, and all say what they are not."""

from __future__ import annotations

import sys

import pytest
import torch

from tenuto.errors import InputError, StoreError
from tenuto.tiers.codec import PageCodec
from tenuto.tiers.page import PageFacts, decode, encode

NAMES = [f"{kind}{rest}" for kind in ("raw", "fp8", "int8", "int4", "delta8") for rest in ("", "+zstd")]
MOST = {"raw": 0.0, "fp8": 0.04, "int8": 0.005, "int4": 0.09, "delta8": 0.02}
SMALLER = {"raw": 1.0, "fp8": 2.0, "int8": 1.75, "int4": 3.1, "delta8": 1.95}
"""Relative error on normal numbers, and how many times smaller than bfloat16 a page is."""


def page(tokens: int = 64, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    keys = torch.randn(3, 2, tokens, width, generator=random) + 5 * torch.randn(3, 2, 1, width, generator=random)
    return keys.to(dtype), torch.randn(3, 2, tokens, width, generator=random).to(dtype)


def off(found: torch.Tensor, given: torch.Tensor) -> float:
    return float((found.float() - given.float()).norm() / given.float().norm())


@pytest.mark.parametrize("name", NAMES)
def test_a_page_comes_back_in_its_dtype_and_within_its_error(name: str) -> None:
    codec = PageCodec.parse(name)
    assert str(codec) == name and codec.exact == name.startswith("raw")
    for dtype, tokens, width in ((torch.bfloat16, 64, 64), (torch.float32, 17, 48), (torch.float16, 1, 16)):
        given = page(tokens, width, dtype)
        found = codec.decode(codec.encode(*given), dtype)
        for mine, theirs in zip(found, given, strict=True):
            assert mine.dtype == dtype and mine.shape == theirs.shape
            assert torch.equal(mine, theirs) if codec.exact else off(mine, theirs) < MOST[codec.kind]
            assert (off(mine, theirs) > 0) is not codec.exact or tokens == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_as_small_as_promised(name: str) -> None:
    codec, (keys, values) = PageCodec.parse(name), page()
    size = sum(part.nbytes for part in codec.encode(keys, values).values())
    assert size * SMALLER[codec.kind] <= keys.nbytes + values.nbytes


def test_differences_and_sorted_bytes_are_worth_their_while() -> None:
    keys = 0.05 * torch.randn(3, 2, 64, 64, generator=torch.Generator().manual_seed(0)).cumsum(2)
    size = {n: sum(p.nbytes for p in PageCodec.parse(n).encode(keys, keys).values()) for n in ("delta8", "delta8+zstd")}
    plain = sum(p.nbytes for p in PageCodec("raw", True).encode(keys, keys).values())
    assert size["delta8+zstd"] < 0.85 * size["delta8"] and plain < 0.95 * 2 * keys.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_constant_and_huge_numbers(name: str) -> None:
    codec = PageCodec.parse(name)
    for number in (0.0, 0.5, -3.0, 80_000.0):
        given = torch.full((1, 1, 33, 32), number)
        for mine in codec.decode(codec.encode(given, given), torch.float32):
            limit = 448.0 if codec.kind == "fp8" else number
            assert torch.allclose(mine, torch.full_like(mine, min(number, limit)), rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_another_codec_are_refused_and_a_page_carries_them(name: str) -> None:
    codec, (keys, values) = PageCodec.parse(name), page()
    named = codec.encode(keys, values)
    facts = PageFacts(model="m", dtype="bfloat16", codec=name, start=0, stop=64)
    assert torch.equal(
        codec.decode(decode(encode(named, facts)).tensors, keys.dtype)[0], codec.decode(named, keys.dtype)[0]
    )
    wrong = [
        {"zstd": torch.zeros(9, dtype=torch.uint8)},
        {"keys": keys},
        {"keys": keys, "values": values[:, :, :3]},
        {},
    ]
    for other in wrong:
        with pytest.raises(StoreError, match="not those of the codec"):
            codec.decode(other, keys.dtype)


def test_unknown_codecs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("int5", "int8+", "int8+lz4", "", "zstd"):
        with pytest.raises(InputError, match="no codec of pages") as error:
            PageCodec.parse(text)
        assert "delta8+zstd" in str(error.value)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match="pip install"):
        PageCodec.parse("raw+zstd")
