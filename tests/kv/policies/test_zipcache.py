"""ZipCache: salience that age does not favour; keys per channel, values per token with separate channels."""

from __future__ import annotations

import math

import pytest
import torch
from views import view_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.zipcache import NormalisedAttention, Separable, ZipCache, sample

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_score_of_a_small_case() -> None:
    """One KV head, two query heads, four entries, the last two tokens are probes: the last entry is seen once."""
    keys = torch.tensor([[[math.log(2.0)], [0.0], [math.log(3.0)], [0.0]]])
    queries = torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]])
    first = [(2 / 6 + 2 / 7) / 2, (1 / 6 + 1 / 7) / 2, (3 / 6 + 3 / 7) / 2, 1 / 7]
    second = [(1 / 3 + 1 / 4) / 2] * 3 + [1 / 4]
    expected = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(NormalisedAttention(1.0).score(view_of(keys, queries)), torch.tensor([expected]))


def test_a_tenth_of_the_queries_are_probes() -> None:
    at = sample(200, 0.1)
    assert at.tolist() == sorted(set(at.tolist())) and len(at) == 20
    assert at[-10:].tolist() == list(range(190, 200)) and at[9] < 190
    assert torch.equal(at, sample(200, 0.1))
    assert sample(3, 0.1).tolist() == [2] and sample(0, 0.1).tolist() == []
    assert sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_a_value_channel_of_its_own_size_costs_nothing() -> None:
    """Channel 1 is a hundred times channel 0: divided by their roots, 10 and 1, a token's own step is a tenth."""
    codec, values = Separable(high=2, low=2, page=2), torch.zeros(2, 8)
    values[0, 1], values[1, 0] = 100.0, 1.0
    code = codec.encode(values, values, classes=None, queries=None)
    torch.testing.assert_close(code["channels"][0, 2, :3], torch.tensor([1.0, 10.0, 1.0]))
    torch.testing.assert_close(code["scales"], torch.tensor([[0.0, 10 / 3], [0.0, 1 / 3]]))
    torch.testing.assert_close(codec.values(code, 0, 2, torch.float32), values)
    torch.testing.assert_close(codec.keys(code, 0, 2, torch.float32), values)


def test_the_formula_in_float64() -> None:
    codec, keys, values = Separable(4, 2, page=16), random(48, 16), random(48, 16, seed=1) * torch.arange(1, 17)
    classes = torch.where(random(48, seed=2) > 0, 1, 2).to(torch.uint8)
    code = codec.encode(keys, values, classes=classes, queries=None)

    def exact(x: torch.Tensor, dim: int, bits: int) -> torch.Tensor:
        low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
        step = (high - low) / (2**bits - 1)
        return low + step * ((x - low) / step).round()

    for number, bits in ((1, 4), (2, 2)):
        at = classes == number
        norm = values[at].double().abs().amax(0).sqrt()
        want_values = exact(values[at].double() / norm, -1, bits) * norm
        got = (codec.keys(code, 0, 48, torch.float32)[at], codec.values(code, 0, 48, torch.float32)[at])
        torch.testing.assert_close(got[0].double(), exact(keys[at].double(), 0, bits), atol=1e-5, rtol=0)
        torch.testing.assert_close(got[1].double(), want_values, atol=1e-4, rtol=0)
    assert sum(tensor.nbytes for tensor in code.values()) <= 48 * codec.entry_bytes(16, 4) + 3 * codec.page_bytes(16, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"salient": -0.1}, "from 0 to 1"), ({"high": 5}, "2, 3, 4 or 8"), ({"probes": 0.0}, "probes above 0")],
)
def test_what_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        ZipCache(**options)  # type: ignore[arg-type]
