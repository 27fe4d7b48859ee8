"""KVMerger: the most similar neighbours hang together; a Gaussian around the pivot weighs the means."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from views import scored_of, view_of

from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policies.kvmerger import GaussianMerge, KVMerger, Pivots, links
from tenuto.kv.policy import Scored
from tenuto.testing.kv import TinyLM, follow, tokens

KEYS = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 2.0]]])
"""Two pairs that point almost the same way, and a last key that is protected."""


def small(scores: list[float]) -> Scored:
    return replace(scored_of([scores], protected=1), view=view_of(KEYS, values=KEYS * 10))


def test_links_are_cosines_and_end_at_what_is_protected() -> None:
    found = links(KEYS[0], torch.tensor([False] * 4 + [True]))
    cosine = 1 / math.sqrt(1.01)
    torch.testing.assert_close(found, torch.tensor([cosine, 0.1 * cosine, cosine, -math.inf]))


def test_a_pivot_of_each_set() -> None:
    scored = small([1.0, 2.0, 5.0, 3.0, 0.0])
    pick = Pivots(window=1)
    assert pick.select(scored, torch.tensor([3])).tolist() == [[0, 1, 1, 0, 1]], "a pivot of each pair"
    assert pick.select(scored, torch.tensor([4])).tolist() == [[0, 1, 1, 1, 1]], "of equal links the older is closed"
    assert pick.select(scored, torch.tensor([2])).tolist() == [[0, 0, 1, 0, 1]], "one set of all four"
    assert pick.select(scored, torch.tensor([1])).tolist() == [[0, 0, 0, 0, 1]], "only what is protected"
    assert pick.select(scored, torch.tensor([5])).tolist() == [[1] * 5]


def test_a_pair_becomes_one_entry() -> None:
    """The only other one lies at sigma: it counts exp(-1/2)."""
    kept = torch.tensor([[False, True, True, False, True]])
    (part,) = GaussianMerge(window=1).reduce(small([0.0] * 5).view, kept)
    near = math.exp(-0.5)
    first, second = (KEYS[0, 1] + near * KEYS[0, 0]) / (1 + near), (KEYS[0, 2] + near * KEYS[0, 3]) / (1 + near)
    expected = torch.stack([first, second, KEYS[0, 4]])
    torch.testing.assert_close(part.keys, expected)
    torch.testing.assert_close(part.values, expected * 10)
    assert part.weights is not None and part.weights.tolist() == [2.0, 2.0, 1.0]
    assert part.index.tolist() == [1, 2, 4]


def test_sigma_and_count_weights() -> None:
    """Others at distances 1 and 3: sigma is 2; the far one stands for four tokens already."""
    view = view_of(torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 3.0]]]))
    view = replace(view, weights=torch.tensor([[1.0, 2.0, 4.0]]))
    (part,) = GaussianMerge(window=0).reduce(view, torch.tensor([[False, True, False]]))
    near, far = math.exp(-1 / 8), 4 * math.exp(-9 / 8)
    torch.testing.assert_close(part.keys, torch.tensor([[1.0, (near + 3 * far) / (2 + near + far)]]))
    assert part.weights is not None and part.weights.tolist() == [7.0]


def test_recent_tokens_take_nothing_in() -> None:
    (part,) = GaussianMerge(window=1).reduce(small([0.0] * 5).view, torch.tensor([[False] * 4 + [True]]))
    assert torch.equal(part.keys, KEYS[0, 4:]) and part.weights is not None and part.weights.tolist() == [1.0]


@pytest.mark.usefixtures("one_thread")
def test_no_token_is_lost() -> None:
    with attach(model := TinyLM(), KVMerger(window=8), budget=MemoryBudget.keep(0.4)) as run:
        follow(model, cache := run.cache(), tokens(80), tokens(0))
        for turn in range(3):
            follow(model, cache, tokens(20, turn), tokens(0))
        for layer in cache.engine:
            assert layer.held is not None
            for segment in range(2):
                weights = layer.held.column(segment, "weights")
                assert weights is not None and float(weights.sum()) == 140 and len(weights) == 56


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="window=-1"):
        KVMerger(window=-1)
