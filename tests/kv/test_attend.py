"""The fast path against the reference, on ragged, weighted, padded and encoded entries; what observers see."""

from __future__ import annotations

import pytest
import torch

from tenuto.kv.attend import attend
from tenuto.kv.entries import Encoded, Held, Store
from tenuto.kv.policies.kivi import Groups
from tenuto.kv.policy import Entries
from tenuto.kv.reference import reference

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS, GROUP, WIDTH = 2, 3, 16
LIMIT = torch.finfo(torch.float32).eps * (WIDTH + 64)  # a score and up to 64 values, of size 1, in another order


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held_of(lengths: list[int], weighted: bool = False, coded: bool = False) -> Held:
    """Segments of these lengths; half of the weights are one; where ``coded``, the first 32 entries are encoded."""
    parts, encoded = [], []
    codec = Groups(bits=4, group=16, residual=0) if coded else None
    for number, length in enumerate(lengths):
        keys, values = random(length, WIDTH, seed=number), random(length, WIDTH, seed=100 + number)
        weights = random(length, seed=200 + number).abs().mul(4).ceil() if weighted else None
        index = torch.arange(length, dtype=torch.int32)
        first = 32 if coded and length >= 40 else 0
        parts.append(Entries(keys[first:], values[first:], index[first:], None if weights is None else weights[first:]))
        code = codec.encode(keys[:first], values[:first], classes=None, queries=None) if codec and first else None
        older = None if weights is None else weights[:first]
        encoded.append(None if code is None else Encoded(code, index[:first], older, None))
    return Held(Store(len(lengths) // HEADS, HEADS, 0, parts), codec, encoded, {})


CASES = {
    "dense": ([50] * 4, False, False),
    "ragged": ([50, 44, 9, 31], False, False),
    "weighted": ([50, 44, 9, 31], True, False),
    "encoded": ([50, 44, 50, 61], False, True),
    "all": ([50, 44, 9, 61], True, True),
}


@pytest.mark.parametrize("new", [1, 7])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("case", CASES)
def test_fast_is_reference(case: str, new: int, padded: bool, softcap: float | None) -> None:
    held, query = held_of(*CASES[case]), random(2, HEADS * GROUP, new, WIDTH, seed=9)
    valid = torch.ones(2, new, dtype=torch.bool) if padded else None
    if valid is not None:
        valid[1, : new // 2] = False
    fast = attend(query, held, valid=valid, scaling=0.3, softcap=softcap)
    slow = reference(query, held, valid=valid, scaling=0.3, softcap=softcap)
    torch.testing.assert_close(fast, slow, atol=LIMIT, rtol=1e-5)


def test_a_whole_prompt() -> None:
    held, query = held_of([30] * 4), random(2, HEADS * GROUP, 30, WIDTH)
    torch.testing.assert_close(
        attend(query, held, valid=None, scaling=0.3),
        reference(query, held, valid=None, scaling=0.3),
        atol=LIMIT,
        rtol=1e-5,
    )


def test_an_entry_of_weight_three_is_three_entries() -> None:
    one, three = held_of([4, 4]), held_of([6, 6])
    for segment in range(2):
        part, copies = one.store.entries(segment), three.store.entries(segment)
        copies.keys.copy_(part.keys[[0, 0, 0, 1, 2, 3]])
        copies.values.copy_(part.values[[0, 0, 0, 1, 2, 3]])
    one.store.weights = torch.tensor([3.0, 1.0, 1.0, 1.0] * 2)
    query = random(1, HEADS * GROUP, 1, WIDTH)
    expected = attend(query, three, valid=None, scaling=0.3)
    torch.testing.assert_close(attend(query, one, valid=None, scaling=0.3), expected)


@pytest.mark.parametrize("new", [1, 300])
def test_observers_see_what_is_attended(new: int) -> None:
    held, query = held_of([310, 304]), random(1, HEADS * GROUP, new, WIDTH)
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {0: [], 1: []}
    output = attend(query, held, valid=None, scaling=0.3, observer=lambda segment, a, at: seen[segment].append((a, at)))
    for segment, calls in seen.items():
        attention = torch.cat([a for a, _ in calls], 1)
        assert torch.equal(torch.cat([at for _, at in calls]), torch.arange(new))
        torch.testing.assert_close(attention.sum(-1), torch.ones(GROUP, new))
        mixed = attention @ held.store.entries(segment).values
        torch.testing.assert_close(output[0, :, segment * GROUP : (segment + 1) * GROUP].transpose(0, 1), mixed)
