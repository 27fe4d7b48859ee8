"""Quest: the bound of a page by hand, that it bounds, and that the best pages are read."""

from __future__ import annotations

import pytest
import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.quest import Bounds, Quest


def test_the_bound_by_hand() -> None:
    index = Bounds(page=2, pages=1)
    first = index.summarise(torch.tensor([[[1.0, -2.0], [3.0, 0.0]]]))
    second = index.summarise(torch.tensor([[[0.0, 1.0], [0.0, 4.0]]]))
    assert first["least"].tolist() == [[1.0, -2.0]] and first["most"].tolist() == [[3.0, 0.0]]
    both = {name: torch.stack([first[name], second[name]]) for name in first}
    queries = torch.tensor([[2.0, -1.0], [-1.0, 1.0]])  # two heads of one group
    # 2*3 + -1*-2 = 8 and 0 - 1*1 = -1;  -1*1 + 1*0 = -1 and 0 + 1*4 = 4
    assert index.bounds(queries, both).tolist() == [[8.0, -1.0], [-1.0, 4.0]]
    shares = torch.tensor([[8.0, -1.0], [-1.0, 4.0]]).mul(0.5).softmax(-1).mean(0)
    torch.testing.assert_close(index.score(queries, both, 0.5), shares)


def test_no_product_exceeds_it() -> None:
    made = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(2, 40, 8, generator=made), torch.randn(6, 8, generator=made)
    index = Bounds(page=10)
    pages = [index.summarise(keys.gather(1, at[..., None].expand(-1, -1, 8))) for at in index.arrange(keys)]
    bounds = index.bounds(queries, {name: torch.stack([page[name] for page in pages]) for name in pages[0]})
    products = torch.einsum("hgd,hnd->hgn", queries.view(2, 3, 8), keys).flatten(0, 1).view(6, 4, 10)
    assert bool((products.amax(-1) <= bounds + 1e-5).all())


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="at least 1"):
        Quest(pages=0)
