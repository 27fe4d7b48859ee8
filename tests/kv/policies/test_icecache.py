"""IceCache: pages of similar keys by hand; every entry in one page."""

from __future__ import annotations

import pytest
import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.icecache import Clusters, IceCache


def test_similar_keys_share_a_page() -> None:
    """Two heads, two groups that alternate in the text and lie far apart along the first channel."""
    keys = torch.tensor([[9.0, 0.1], [-9.0, 0.2], [9.1, 0.0], [-9.1, 0.1], [8.9, 0.3], [-8.8, 0.0]]).expand(2, -1, -1)
    index = Clusters(page=3, pages=1)
    pages = sorted(part[0].tolist() for part in index.arrange(keys))
    assert pages == [[0, 2, 4], [1, 3, 5]]
    assert all(part.shape == (2, 3) for part in index.arrange(keys))
    torch.testing.assert_close(index.summarise(keys[:, [0, 2, 4]])["centroid"][0], torch.tensor([9.0, 0.4 / 3]))


def test_every_entry_is_in_one_page() -> None:
    keys = torch.randn(2, 7 * 16, 8, generator=torch.Generator().manual_seed(0))
    parts = Clusters(page=16).arrange(keys)
    assert [part.shape for part in parts] == [(2, 16)] * 7
    assert sorted(torch.cat([part[1] for part in parts]).tolist()) == list(range(7 * 16))
    assert len(Clusters(page=4).arrange(torch.zeros(1, 12, 8))) == 3, "equal keys too"


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="at least 1"):
        IceCache(pages=0)
