from __future__ import annotations

import numpy as np
import pytest
import torch

from tenuto.errors import InputError, StoreError
from tenuto.vllm.codec import CODECS, FLOATS, GROUP, block_codec

BYTES = 2 * 4096


def keys_and_values(dtype: str) -> np.ndarray:
    """What a cache holds: values of one order of magnitude, some larger."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(BYTES // FLOATS[dtype].itemsize, generator=generator)
    values[::37] *= 8
    return values.to(FLOATS[dtype]).view(torch.uint8).numpy()


@pytest.mark.parametrize("name", ["raw", "zstd"])
@pytest.mark.parametrize("dtype", [*FLOATS, "fp8"])
def test_an_exact_codec_gives_back_every_bit(name: str, dtype: str) -> None:
    codec = block_codec(name, dtype)
    for row in (np.random.default_rng(0).integers(0, 256, BYTES, np.uint8), np.zeros(BYTES, np.uint8)):
        back = np.full(BYTES, 77, np.uint8)
        codec.decode(memoryview(codec.encode(row)), back)
        assert codec.exact
        assert np.array_equal(back, row)


@pytest.mark.parametrize(("dtype", "smaller"), [("bfloat16", 0.8), ("float32", 0.92), ("float16", 0.95)])
def test_zstd_shrinks_the_exponents(dtype: str, smaller: float) -> None:
    assert len(block_codec("zstd", dtype).encode(keys_and_values(dtype))) < smaller * BYTES


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_is_off_by_half_a_step_at_most(dtype: str) -> None:
    codec, row, back = block_codec("int8", dtype), keys_and_values(dtype), np.zeros(BYTES, np.uint8)
    page = codec.encode(row)
    codec.decode(memoryview(page), back)
    told, true = (torch.from_numpy(x).view(FLOATS[dtype]).double().view(-1, GROUP) for x in (back, row))
    step = true.abs().amax(-1, keepdim=True) / 127
    rounding = torch.finfo(FLOATS[dtype]).eps * true.abs().amax(-1, keepdim=True)
    assert ((told - true).abs() <= 0.5001 * step + rounding).all()
    assert not codec.exact
    assert len(page) == true.numel() * (1 + 4 / GROUP)


def test_int8_takes_zeros_and_refuses_what_it_cannot_hold() -> None:
    codec, back = block_codec("int8", "bfloat16"), np.full(BYTES, 1, np.uint8)
    codec.decode(memoryview(codec.encode(np.zeros(BYTES, np.uint8))), back)
    assert not back.any()
    with pytest.raises(StoreError, match="not finite"):
        codec.encode(torch.full((BYTES // 2,), torch.inf, dtype=torch.bfloat16).view(torch.uint8).numpy())
    with pytest.raises(StoreError, match="no whole number of 64 values"):
        codec.encode(np.zeros(130, np.uint8))
    with pytest.raises(InputError, match="raw or zstd"):
        block_codec("int8", "fp8")


@pytest.mark.parametrize("name", CODECS)
def test_a_page_of_another_size_is_no_block(name: str) -> None:
    codec = block_codec(name, "bfloat16")
    page = memoryview(codec.encode(keys_and_values("bfloat16")))
    for broken, size in ((page, BYTES // 2), (page[: len(page) // 2], BYTES), (page[:0], BYTES)):
        with pytest.raises(StoreError):
            codec.decode(broken, np.zeros(size, np.uint8))


def test_unknown_codec() -> None:
    with pytest.raises(InputError, match="Did you mean 'zstd'"):
        block_codec("zst", "bfloat16")
