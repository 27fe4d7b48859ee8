"""MiKV: two classes, balanced channels, one scale per token; codes move and are never rounded again."""

from __future__ import annotations

import pytest
import torch
from views import scored_of

from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policies.mikv import Balanced, MiKV, TwoLevels
from tenuto.testing.kv import TinyLM, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Per token, in float64."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return low + step * ((x - low) / step).round()


def test_the_best_share_is_the_first_class() -> None:
    """Of five entries four are kept, a quarter of them in the first class: the best; the recent one is protected."""
    scored = scored_of([[9.0, 1.0, 7.0, 3.0, 0.0], [1.0, 9.0, 3.0, 7.0, 0.0]])
    assert TwoLevels(0.25).select(scored, torch.tensor([4, 2])).tolist() == [[1, 2, 2, 2, 0], [0, 1, 0, 2, 0]]
    assert TwoLevels(0.25).select(scored_of([[9.0, 1.0, 0.0]], protected=1), torch.tensor([2])).tolist() == [[2, 0, 1]]


def test_the_balancer_of_a_small_case() -> None:
    """Key channel 0 is at most 4, its query 1; channel 1 at most 1 and 4: b = (1/2, 2). In 2 bits the key (4, 0) is
    (2, 0) and the key (0, 1) is (0, 2), both exact; unbalanced channels of size 4 and 1 share a step as well."""
    codec = Balanced(high=2, low=2, page=1, residual=0)
    keys = torch.zeros(2, 8)
    keys[0, 0], keys[1, 1] = 4.0, 1.0
    queries = torch.zeros(1, 3, 8)
    queries[0, 1, 0], queries[0, 2, 1] = -1.0, 4.0
    code = codec.encode(keys, keys, classes=None, queries=queries)
    torch.testing.assert_close(code["channels"][0, 0, :3], torch.tensor([2.0, 0.5, 1.0]))
    assert torch.equal(code["scales"], torch.tensor([[0.0, 2 / 3, 0.0, 4 / 3], [0.0, 2 / 3, 0.0, 1 / 3]]))
    torch.testing.assert_close(codec.keys(code, 0, 2, torch.float32), keys)


def encoded(codec: Balanced, count: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    keys, values, queries = random(count, 16, seed=seed), random(count, 16, seed=seed + 1), random(2, 9, 16, seed=7)
    classes = torch.where(random(count, seed=seed + 2) > 0.5, 1, 2).to(torch.uint8)
    code = codec.encode(keys, values, classes=classes, queries=queries)
    b = (queries.double().abs().amax((0, 1)) / keys.double().abs().amax(0)).sqrt()
    first = (classes == 1)[:, None]
    want_keys = torch.where(first, exact(keys.double() * b, 8), exact(keys.double() * b, 2)) / b
    want_values = torch.where(first, exact(values.double(), 8), exact(values.double(), 2))
    return code, want_keys, want_values


def test_the_formula_in_float64() -> None:
    codec = Balanced(8, 2, page=16, residual=0)
    code, keys, values = encoded(codec, 48)
    torch.testing.assert_close(codec.keys(code, 5, 41, torch.float32).double(), keys[5:41], atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.values(code, 5, 41, torch.float32).double(), values[5:41], atol=1e-5, rtol=0)
    assert sum(tensor.nbytes for tensor in code.values()) <= 48 * codec.entry_bytes(16, 4) + 3 * codec.page_bytes(16, 4)


def test_moving_codes_does_not_round_again() -> None:
    codec = Balanced(8, 2, page=16, residual=0)
    parts = [encoded(codec, 32, seed) for seed in (0, 10)]
    code = codec.join(parts[0][0], parts[1][0])
    at = torch.tensor([0, 1, 7, 20, 21, 33, 60, 63])
    taken = codec.take(code, at)
    for decode in (codec.keys, codec.values):
        alone = torch.cat([decode(part, 0, 32, torch.float32) for part, _, _ in parts])
        assert torch.equal(decode(code, 0, 64, torch.float32), alone)
        assert torch.equal(decode(taken, 0, 8, torch.float32), alone[at])
        assert torch.equal(decode(codec.take(taken, torch.tensor([7])), 0, 1, torch.float32), alone[[63]])
    assert len(codec.take(code, torch.tensor([40, 41, 42, 43, 44, 45]))["channels"]) <= 2


def test_both_classes_are_held_in_the_cache() -> None:
    with attach(model := TinyLM(), MiKV(residual=0, page=16), budget=MemoryBudget.keep(1)) as run:
        follow(model, cache := run.cache(), tokens(160), tokens(40, 1))
        held = cache.engine[0].held
        assert held is not None and held.encoded[0] is not None
        marks = held.encoded[0].code["low"]
        assert len(marks) == 160 and int((marks == 0).sum()) == 32, "a fifth is important, decoded ones wait"
        assert cache.bytes_held < 0.55 * cache.bytes_full


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"important": 1.5}, "from 0 to 1"),
        ({"high": 2, "low": 4}, "low not above high"),
        ({"page": 0}, "page at least"),
    ],
)
def test_what_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        MiKV(**options)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="divisible by 8"):
        Balanced().check(20)
