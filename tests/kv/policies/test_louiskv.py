"""LouisKV: centroids by hand, and a new choice only where the query has turned."""

from __future__ import annotations

import pytest
import torch

from tenuto.errors import PolicyError
from tenuto.kv.offload.pool import Pool
from tenuto.kv.offload.row import PagedRow
from tenuto.kv.policies.louiskv import AtBoundaries, LouisKV
from tenuto.tiers.host import HostTier


def test_a_new_choice_only_at_a_boundary() -> None:
    index = AtBoundaries(page=2, pages=1, threshold=0.8)
    row, pool = PagedRow(index), Pool(HostTier(2**20), None)
    row.room = 2
    keys = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    row.add(pool, keys, keys, torch.arange(4))
    assert row.summaries["centroid"].tolist() == [[[2.0, 0.0]], [[0.0, 1.0]]]
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    near = torch.tensor([[0.8, 0.59]])  # cosine 0.805
    assert row.choose(east, 1.0) == [0]
    assert row.choose(near, 1.0) == [0] and torch.equal(row.asked, east), "compared with the last choice"  # type: ignore[arg-type]
    assert row.choose(torch.tensor([[0.7, 0.7]]), 1.0) == [0] and not torch.equal(row.asked, east)  # type: ignore[arg-type]
    assert row.choose(north, 1.0) == [1]


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="at least 1"):
        LouisKV(page=0)
