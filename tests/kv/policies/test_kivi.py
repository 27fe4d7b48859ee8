"""KIVI: the exact formula, packed; nothing is rounded twice; products without decoding are those with."""

from __future__ import annotations

import pytest
import torch

from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.parts import Codec
from tenuto.kv.policies.kivi import Groups, Kivi, pack, unpack
from tenuto.testing.kv import TinyLM, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_is_lossless_and_small(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes, bits)
    assert packed.shape == (5, 32 * bits // 8)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_formula_in_float64(bits: int) -> None:
    codec, keys, values = Groups(bits, group=8, residual=0), random(24, 16), random(24, 16, seed=1)
    code = codec.encode(keys, values, classes=None, queries=None)

    def exact(x: torch.Tensor, dim: int) -> torch.Tensor:
        low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
        step = (high - low) / (2**bits - 1)
        return low + step * ((x - low) / step).round()

    want_keys = exact(keys.double().unflatten(0, (3, 8)), 1).flatten(0, 1)
    want_values = exact(values.double().unflatten(1, (2, 8)), -1).flatten(1)
    torch.testing.assert_close(codec.keys(code, 0, 24, torch.float32).double(), want_keys, atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.values(code, 0, 24, torch.float32).double(), want_values, atol=1e-5, rtol=0)
    sized = sum(tensor.nbytes for tensor in code.values())
    assert sized <= 24 * codec.entry_bytes(16, 4) + 3 * codec.page_bytes(16, 4)


def test_moving_codes_does_not_round_again() -> None:
    codec, keys, values = Groups(2, group=8, residual=0), random(64, 16), random(64, 16, seed=1)
    whole = codec.encode(keys, values, classes=None, queries=None)
    halves = [codec.encode(keys[s], values[s], classes=None, queries=None) for s in (slice(0, 32), slice(32, 64))]
    code = codec.join(*halves)
    at = torch.tensor([0, 1, 7, 20, 21, 33, 60, 63])
    taken = codec.take(code, at)
    for decode in (codec.keys, codec.values):
        everything = decode(whole, 0, 64, torch.float32)
        assert torch.equal(decode(code, 0, 64, torch.float32), everything)
        assert torch.equal(decode(taken, 0, 8, torch.float32), everything[at])
        assert torch.equal(decode(codec.take(taken, torch.tensor([2, 7])), 0, 2, torch.float32), everything[[7, 63]])
    assert len(taken["key_scales"]) == 4, "scales of pages that are gone are gone"


@pytest.mark.parametrize(("bits", "group"), [(2, 4), (2, 16), (2, 32), (3, 8), (3, 32), (4, 8), (4, 32), (8, 16)])
def test_products_without_decoding(bits: int, group: int) -> None:
    codec, keys, values = Groups(bits, group, residual=0), random(128, 32), random(128, 32, seed=1)
    code = codec.encode(keys, values, classes=None, queries=None)
    codes = [code, codec.encode(values, keys, classes=None, queries=None)]
    query, attention = random(2, 3, 32, seed=2), random(2, 3, 64, seed=3)
    for pair in (codes, [code, codec.take(codec.join(code, code), torch.arange(0, 256, 2))]):
        plain = Codec.logits(codec, pair, query, 32, 96)
        torch.testing.assert_close(codec.logits(pair, query, 32, 96), plain, atol=1e-4, rtol=1e-4)
        plain = Codec.mix(codec, pair, attention, 32, 96)
        torch.testing.assert_close(codec.mix(pair, attention, 32, 96), plain, atol=1e-4, rtol=1e-4)


def test_no_drift_over_a_long_generation() -> None:
    """What was encoded after the prompt is bit for bit the same 400 tokens later: codes, scales and what they decode
    to."""

    def first() -> list[torch.Tensor]:
        held = cache.engine[1].held
        assert held is not None and held.encoded[0] is not None
        code, kept = held.encoded[0].code, [held.all_keys(0)[:64], held.all_values(0)[:64]]
        kept += [code[name][:64] for name in ("keys", "values", "page")]
        return [part.clone() for part in (*kept, code["key_scales"][:2], code["value_scales"][:, :, :64])]

    with attach(model := TinyLM(), Kivi(bits=2), budget=MemoryBudget.keep(1)) as run:
        follow(model, cache := run.cache(), tokens(100), tokens(1))
        before = first()
        follow(model, cache, tokens(1, 2), tokens(400, 3))
        encoded = cache.engine[1].held.encoded[0]  # type: ignore[union-attr]
        assert encoded is not None and len(encoded) > 400
        assert all(torch.equal(*pair) for pair in zip(first(), before, strict=True))


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="bits must be 2, 3, 4 or 8"):
        Kivi(bits=5)
    with pytest.raises(
        PolicyError, match="group=48 does not divide the head size 32 of this model. Give .* example 32"
    ):
        with attach(TinyLM(), Kivi(group=48), budget=MemoryBudget.keep(1)):
            pass
