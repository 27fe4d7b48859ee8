"""Merged parts are the whole, at every precision and for every partition; what is left out is exactly accounted for."""

from __future__ import annotations

import pytest
import torch

from tenuto.shards.merge import Part, merge, pack, part, rest, unpack

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS, KV_HEADS, WIDTH = 8, 4, 64
LIMIT = torch.finfo(torch.float32).eps * 2 * WIDTH  # a score and a mean of values, of size 1, in another order


def drawn(entries: int, new: int = 2, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(entries + new)
    shapes = ((HEADS, new, WIDTH), (KV_HEADS, entries, WIDTH), (KV_HEADS, entries, WIDTH))
    return tuple(torch.randn(shape, generator=made).to(dtype) for shape in shapes)


def whole(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None = None) -> Part:
    """Unsharded softmax in float64; queries that see nothing get 0."""
    q, k, v = query.double().unflatten(0, (KV_HEADS, -1)), keys.double(), values.double()
    logits = torch.einsum("hgqd,hnd->hgqn", q, k) * WIDTH**-0.5
    if seen is not None:
        logits = logits.masked_fill(~seen, float("-inf"))
    mixed = torch.einsum("hgqn,hnd->hgqd", logits.softmax(-1).nan_to_num(0.0), v)
    return Part(mixed.flatten(0, 1), logits.logsumexp(-1).flatten(0, 1))


def scattered(entries: int, shards: int) -> list[torch.Tensor]:
    """A random partition; the last shard is empty where there are several."""
    at = torch.randint(max(shards - 1, 1), (entries,), generator=torch.Generator().manual_seed(shards))
    return [(at == shard).nonzero()[:, 0] for shard in range(shards)]


def parts_of(given: tuple[torch.Tensor, ...], shards: int, seen: torch.Tensor | None = None) -> list[Part]:
    query, keys, values = given
    return [
        part(query, keys[:, at], values[:, at], WIDTH**-0.5, None, None if seen is None else seen[:, at])
        for at in scattered(keys.shape[1], shards)
    ]


@pytest.mark.parametrize("entries", [1024, 16384])
@pytest.mark.parametrize("shards", [1, 2, 8, 64])
def test_merged_is_whole(shards: int, entries: int) -> None:
    given = drawn(entries)
    found, wanted = merge(parts_of(given, shards)), whole(*given)
    assert (found.output - wanted.output).abs().max() <= LIMIT
    assert (found.lse - wanted.lse).abs().max() <= LIMIT


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_over_the_wire(dtype: torch.dtype, limit: float) -> None:
    given = drawn(1024, dtype=dtype)
    wired = []
    for one in parts_of(given, 8):
        packed = pack(one, dtype)
        assert packed.shape[-1] == 2 * WIDTH + 4, "the wire cost of the research card: 2D + 4 bytes per head"
        wired.append(unpack(packed, WIDTH, dtype)[0])
    assert (merge(wired).output - whole(*given).output).abs().max() <= limit


def test_double_precision_stays_double() -> None:
    given = drawn(1024, dtype=torch.float64)
    packed = [pack(one, torch.float64) for one in parts_of(given, 8)]
    assert packed[0].shape[-1] == 8 * WIDTH + 8
    found = merge([unpack(one, WIDTH, torch.float64)[0] for one in packed])
    assert found.output.dtype == found.lse.dtype == torch.float64
    query, keys, values = given
    own = torch.nn.functional.scaled_dot_product_attention(
        query[None], keys[None], values[None], scale=WIDTH**-0.5, enable_gqa=True
    )[0]
    assert (found.output - own).abs().max() <= 1e-13


def test_tree_is_flat() -> None:
    parts = parts_of(drawn(1024), 8)
    tree = merge([merge([merge(parts[:2]), merge(parts[2:4])]), merge(parts[4:])])
    assert (tree.output - merge(parts).output).abs().max() <= LIMIT


def test_rows_that_see_nothing() -> None:
    given = drawn(64, new=6)
    seen = torch.arange(64) < torch.tensor([0, 0, 5, 20, 40, 64])[:, None]
    found, wanted = merge(parts_of(given, 8, seen)), whole(*given, seen=seen)
    assert not found.output.isnan().any() and not found.output[:, :2].any()
    assert (found.lse[:, :2] == float("-inf")).all()
    assert (found.output - wanted.output).abs().max() <= LIMIT


def test_packing_is_lossless_and_carries_what_was_left_out() -> None:
    one = parts_of(drawn(16), 1)[0]
    back, left = unpack(pack(one, torch.float32, one.lse - 1), WIDTH, torch.float32, measured=True)
    assert torch.equal(back.output, one.output) and torch.equal(back.lse, one.lse)
    assert left is not None and torch.equal(left, one.lse - 1)


def test_error_identity() -> None:
    query, keys, values = drawn(1024)
    read, left = scattered(1024, 3)[:2]
    a, b = (part(query, keys[:, at], values[:, at], WIDTH**-0.5) for at in (read, left))
    true = whole(query, keys, values)
    eps = (rest(query, keys[:, left], WIDTH**-0.5) - torch.logaddexp(a.lse, b.lse)).exp()
    assert eps.min() > 0.3 and eps.max() < 0.7
    assert ((true.output - a.output) - eps[..., None] * (b.output - a.output)).abs().max() <= LIMIT
