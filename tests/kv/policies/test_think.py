"""ThinK: the channels of most energy, stored without gaps; logits without decoding are those with."""

from __future__ import annotations

import pytest
import torch

from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policies.think import ThinK, ThinKeys
from tenuto.testing.kv import TinyLM, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_channels_of_a_small_case() -> None:
    """Key energies 10, 8, 1, 4 times query energies (two heads of the group together) 1, 2, 40, 1: 10, 16, 40, 4."""
    keys, queries = torch.zeros(2, 8), torch.zeros(2, 1, 8)
    keys[:, :4] = torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 0.0, 2.0]])
    queries[..., :4] = torch.tensor([[[1.0, 1.0, 2.0, 0.0]], [[0.0, 1.0, 6.0, 1.0]]])
    code = ThinKeys(keep=0.25).encode(keys, keys, classes=None, queries=queries)
    assert ThinKeys().channels(code, torch.tensor([0])).tolist() == [[1, 2]]
    assert code["keys"].tolist() == [[2.0, 1.0], [2.0, 0.0]]
    decoded = ThinKeys().keys(code, 0, 2, torch.float32)
    assert decoded.tolist() == [[0.0, 2.0, 1.0, *[0.0] * 5], [0.0, 2.0, *[0.0] * 6]]
    assert torch.equal(ThinKeys().values(code, 0, 2, torch.float32), keys)


def encoded(codec: ThinKeys, count: int, seed: int) -> dict[str, torch.Tensor]:
    queries = random(2, 9, 16, seed=seed + 1)
    return codec.encode(random(count, 16, seed=seed), random(count, 16, seed=seed + 2), classes=None, queries=queries)


def test_codes_move_and_logits_need_no_decoding() -> None:
    codec = ThinKeys(keep=0.4, page=8)
    parts = [encoded(codec, 32, seed) for seed in (0, 10)]
    code, at = codec.join(*parts), torch.tensor([0, 1, 7, 20, 21, 33, 60, 63])
    alone = torch.cat([codec.keys(part, 0, 32, torch.float32) for part in parts])
    assert torch.equal(codec.keys(code, 0, 64, torch.float32), alone)
    assert torch.equal(codec.keys(codec.take(code, at), 0, 8, torch.float32), alone[at])
    assert len(codec.take(code, at[5:])["mask"]) == 1, "channels of groups that are gone are gone"
    query = random(1, 6, 16, seed=5)
    torch.testing.assert_close(codec.logits([code], query, 5, 50), query @ alone[5:50].T, atol=1e-4, rtol=1e-5)
    assert sum(tensor.nbytes for tensor in code.values()) <= 64 * codec.entry_bytes(16, 4) + 8 * codec.page_bytes(16, 4)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_heads_together_are_heads_alone(groups: int) -> None:
    """Up to two groups of channels and beyond; heads whose groups are not as many."""
    codec, codes = ThinKeys(keep=0.4, page=8), []
    for head in range(3):
        code = encoded(codec, 16, seed=head)
        for number in range(1, groups):
            code = codec.join(code, encoded(codec, 16, seed=head + 10 * number))
        codes.append(code)
    query, attention = random(3, 6, 16, seed=5), random(3, 6, 16 * groups - 5, seed=6)
    limit = torch.finfo(torch.float32).eps * 64 * 16  # up to 48 products of two numbers below 4
    for some in (codes, [codec.join(encoded(codec, 16 * groups - 8, 70), encoded(codec, 8, 71)), *codes[1:]]):
        keys = torch.stack([codec.keys(code, 5, 16 * groups, torch.float32) for code in some])
        values = torch.stack([codec.values(code, 5, 16 * groups, torch.float32) for code in some])
        found = codec.logits(some, query, 5, 16 * groups)
        torch.testing.assert_close(found, query @ keys.mT, atol=limit, rtol=1e-5)
        mixed = codec.mix(some, attention, 5, 16 * groups)
        torch.testing.assert_close(mixed, attention @ values, atol=limit, rtol=1e-5)


def test_memory_shrinks_and_recent_and_decoded_keys_are_whole() -> None:
    prompt = tokens(160)
    with attach(model := TinyLM(), ThinK(keep=0.5), budget=MemoryBudget.keep(1)) as run:
        follow(model, cache := run.cache(), prompt, tokens(0))
        held = cache.engine[0].held
        assert held is not None and held.encoded[0] is not None
        thin = held.all_keys(0)
        assert ((thin == 0).sum(-1) == torch.tensor([16] * 128 + [0] * 32)).all()
        assert cache.bytes_held < 0.85 * cache.bytes_full
        follow(model, cache, tokens(1), tokens(70, 1))
        assert len(held.encoded[0]) == 128 and (cache.engine[0].held.all_keys(0)[128:] != 0).all()  # type: ignore[union-attr]


def test_the_energies_are_those_of_the_last_queries() -> None:
    """With compression while decoding, later entries are cut by later queries: groups differ in their channels."""
    with attach(model := TinyLM(), ThinK(keep=0.5, window=8), budget=MemoryBudget.keep(1), every=8) as run:
        follow(model, cache := run.cache(), tokens(40), tokens(40, 1))
        held = cache.engine[0].held
        assert held is not None and held.encoded[0] is not None
        code = held.encoded[0].code
        assert len(code["group"]) == 64 and len(code["mask"].unique(dim=0)) > 1


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.5}, {"window": 0}])
def test_what_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="keep must be above 0"):
        ThinK(**options)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="divisible by 8"):
        ThinKeys().check(20)
