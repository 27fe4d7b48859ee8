"""Both archives give back what was put, in whatever order rows and chunks came."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tenuto.attention.archive import Archive, InMemory, InTier, take
from tenuto.tiers.codec import PageCodec
from tenuto.tiers.host import HostTier

KINDS: dict[str, Callable[[], Archive]] = {
    "memory": InMemory,
    "tier": lambda: InTier(HostTier(1 << 20), PageCodec()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fill_at_different_times(kind: str) -> None:
    torch.manual_seed(0)
    whole_k, whole_v = torch.randn(2, 3, 5, 4, 8), torch.randn(2, 3, 5, 4, 8)
    archive, have = KINDS[kind](), torch.tensor([0, 0])
    for new in ([2, 1], [0, 1], [3, 1]):
        count = max(new)
        number = have[:, None] + torch.arange(count)
        valid = torch.arange(count) < torch.tensor(new)[:, None]
        index = number.clamp(max=4)[:, None].expand(-1, 3, -1)[:, :, None]
        archive.put(take(whole_k, index)[:, :, 0], take(whole_v, index)[:, :, 0], number, valid)
        have = have + torch.tensor(new)
    assert have.tolist() == [5, 3]
    chosen = torch.tensor([[4, 0], [2, 2], [1, 3]])[None, :, None].expand(2, -1, -1, -1).clone()
    chosen[1] = chosen[1].clamp(max=2)
    k, v = archive.read(chosen)
    assert torch.equal(k, take(whole_k, chosen)) and torch.equal(v, take(whole_v, chosen))
    before = archive.held()
    archive.select(torch.tensor([1, 1]))
    again, _ = archive.read(chosen[[1, 1]])
    assert torch.equal(again, take(whole_k[[1, 1]], chosen[[1, 1]]))
    assert before and all(size > 0 for size in before.values())


def test_rows_that_were_one_share_their_pages() -> None:
    archive = InTier(HostTier(1 << 20), PageCodec())
    one = torch.randn(1, 2, 3, 4, 8)
    archive.put(one, one, torch.arange(3)[None], torch.ones(1, 3, dtype=torch.bool))
    size = archive.held()
    archive.select(torch.tensor([0, 0, 0]))
    assert archive.held() == size
    archive.put(
        one.expand(3, -1, -1, -1, -1)[:, :, :1],
        one.expand(3, -1, -1, -1, -1)[:, :, :1] + 1,
        torch.full((3, 1), 3),
        torch.tensor([[True], [False], [True]]),
    )
    assert archive.held()["store"] > size["store"]
