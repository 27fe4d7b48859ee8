"""The formulas of docs/pikv.md are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tenuto.shards import Expert, RoundRobin, shard
from tenuto.shards.merge import Part, pack, unpack
from tenuto.testing.kv import TinyLM, tokens

PAGE = (Path(__file__).parents[2] / "docs" / "pikv.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("measured", [False, True])
def test_a_message_has_the_bytes_the_page_says(dtype: torch.dtype, measured: bool) -> None:
    heads, width, wide = 6, 16, torch.promote_types(dtype, torch.float32)
    output, lse = torch.randn(2, heads, 1, width).to(wide), torch.randn(2, heads, 1).to(wide)
    packed = pack(Part(output, lse), dtype, lse + 1 if measured else None)
    assert "`heads x (head_dim x itemsize + 4)`" in PAGE and "4 more for each head" in PAGE
    four = 8 if dtype is torch.float64 else 4
    assert packed[0].nbytes == heads * (width * dtype.itemsize + four * (1 + measured))
    part, left = unpack(packed, width, dtype, measured)
    assert torch.equal(part.lse, lse) and (left is not None) == measured
    assert torch.equal(part.output, output.to(dtype).to(wide))


def test_the_table_of_bytes_sent_and_moved() -> None:
    for heads, kv_heads in ((32, 8), (32, 4), (16, 16)):
        output = torch.zeros(1, heads, 1, 128)
        sent = pack(Part(output, output[..., 0]), torch.float32).nbytes
        moved = 32768 // 2 * kv_heads * 128 * 4 * 2  # half of the tokens, keys and values
        assert f"{sent:,} against {moved:,} |" in PAGE


def test_shares_and_caps() -> None:
    model, ids = TinyLM(), tokens(130)
    with torch.no_grad(), shard(model, RoundRobin(page=16), shards=4) as run:
        model(ids)
        facts = run.summary()
        page = 3 * 16 * 2 * 2 * 32 * 4
        assert "holds `1/ranks` of the bytes" in PAGE
        assert all(abs(size - facts["bytes_full"] / 4) <= page for size in facts["bytes_by_shard"].values())
    assert "largest load 1.25 of the mean, the cap" in PAGE and Expert().slack == 1.25
