"""PyramidKV: an arithmetic line over the layers, exact to the token, and never more than the budget in all."""

from __future__ import annotations

import pytest
from views import layer_of

from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policies.pyramidkv import Pyramid, PyramidKV
from tenuto.testing.kv import TinyLM, follow, tokens


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(500, [78, 59, 40, 21, 2]), (62, [60, 50, 40, 30, 20]), (42, [40] * 5), (30, [40] * 5)],
    ids=["m = 40 // 20", "the first keeps all", "all fit", "all fit well"],
)
def test_the_line(seen: int, expected: list[int]) -> None:
    """42 per head, two of them protected: b = 40, m = 2, M = 2b - m = 78, five layers."""
    layers = [layer_of(seen, layer, 5, protected=2) for layer in range(5)]
    assert [Pyramid(20).allocate([s], 84)[0].tolist() for s in layers] == [[2 + n] * 2 for n in expected]


@pytest.mark.parametrize("total", range(3, 60, 7))
def test_rounding_stays_within_the_budget(total: int) -> None:
    counts = [int(Pyramid(7).allocate([layer_of(90, layer, 7)], 2 * total)[0][0]) for layer in range(7)]
    assert 7 * total - 7 < sum(counts) <= 7 * total
    assert counts == sorted(counts, reverse=True)


@pytest.mark.usefixtures("one_thread")
def test_layers_hold_what_they_got() -> None:
    """56 tokens, a window of 32: b = 24, m = 1, M = 47 in three layers."""
    with attach(model := TinyLM(), PyramidKV(), budget=MemoryBudget.tokens(56)) as run:
        follow(model, cache := run.cache(), tokens(200), tokens(0))
        assert cache.counts() == [[[32 + 47] * 2], [[32 + 24] * 2], [[32 + 1] * 2]]


@pytest.mark.parametrize("options", [{"beta": 0}, {"window": 0}, {"kernel": 2}])
def test_what_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(PolicyError, match="kernel odd"):
        PyramidKV(**options)
