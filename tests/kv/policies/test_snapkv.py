"""SnapKV: attention of the window, added up, pooled, averaged over the group."""

from __future__ import annotations

import math

import pytest
import torch
from views import view_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.snapkv import SnapKV, WindowAttention, pooled


def test_pooling_leaves_the_window_alone_and_counts_the_ends_as_zero() -> None:
    scores = torch.tensor([[3.0, 0.0, 6.0, 9.0, 7.0]])
    assert torch.equal(pooled(scores, 1, 3, "avg"), torch.tensor([[1.0, 3.0, 5.0, 5.0, 7.0]]))
    assert torch.equal(pooled(scores, 1, 3, "max"), torch.tensor([[3.0, 6.0, 9.0, 9.0, 7.0]]))
    assert torch.equal(pooled(scores, 9, 3, "avg"), scores)


def test_the_score_of_a_small_case() -> None:
    """One KV head, two query heads, four entries, a window of two: every number by hand."""
    keys = torch.tensor([[[math.log(2.0)], [0.0], [math.log(3.0)], [0.0]]])
    queries = torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]])
    first = [2 / 6 + 2 / 7, 1 / 6 + 1 / 7, 3 / 6 + 3 / 7, 1 / 7]
    second = [1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 4]
    expected = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    scores = WindowAttention(probes=2, kernel=1).score(view_of(keys, queries))
    torch.testing.assert_close(scores, torch.tensor([expected]))
    smooth = WindowAttention(probes=2, kernel=3).score(view_of(keys, queries))
    mean = (expected[0] + expected[1]) / 3
    torch.testing.assert_close(smooth, torch.tensor([[mean, mean, *expected[2:]]]))


@pytest.mark.parametrize("options", [{"window": 0}, {"kernel": 4}])
def test_what_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(PolicyError, match="kernel odd"):
        SnapKV(**options)
