"""Where tokens go: balanced where that is promised, every token once, tables that say what is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenuto.errors import AttachError, PolicyError
from tenuto.shards import Affinity, Blocks, Expert, KeyCluster, RoundRobin, Router, Summary
from tenuto.shards.policy import Arrivals, Placement, Places, capped
from tenuto.shards.table import Table

pytestmark = pytest.mark.usefixtures("one_thread")


def arrivals(count: int, shards: int = 4, start: int = 0, experts: bool = True, skew: int = 8) -> Arrivals:
    made = torch.Generator().manual_seed(count + start)
    chosen = torch.randint(skew, (count,), generator=made) * torch.randint(2, (count,), generator=made)
    numbers, keys = torch.arange(start, start + count), torch.randn(2, count, 8, generator=made)
    return Arrivals(numbers, keys, chosen if experts else None, torch.zeros(shards, dtype=torch.int64))


def test_round_robin_and_blocks_go_page_by_page() -> None:
    new = arrivals(100)
    shard = RoundRobin(page=8).place(new, None).shard
    assert shard[:33].tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8 + [0]
    assert Blocks(page=8, block=2).place(new, None).shard[:33].tolist() == [0] * 16 + [1] * 16 + [2]


@pytest.mark.parametrize("slack", [1.0, 1.25])
def test_no_shard_is_above_its_cap(slack: float) -> None:
    home = arrivals(400).experts
    assert home is not None
    assert torch.bincount(home % 4, minlength=4).max() > 220, "uncapped, the load is skewed"
    for loads in (torch.tensor([0, 0, 0, 0]), torch.tensor([10, 90, 0, 3])):
        chosen = capped(home % 4, loads, slack)
        after = loads + torch.bincount(chosen, minlength=4)
        assert after.max() <= -(-(400 + int(loads.sum())) * slack // 4) + 1
        stayed = chosen == home % 4
        assert stayed.float().mean() > 0.5, "those that fit stay at home"
    one = capped(torch.tensor([2]), torch.tensor([5, 5, 9, 4]), 1.0)
    assert one.tolist() == [3], "to the least loaded"


def test_experts_have_pages_of_their_own_and_dense_layers_none() -> None:
    new = arrivals(200)
    assert new.experts is not None
    places = Expert(page=8).place(new, None)
    assert torch.equal(places.kind, new.experts)
    dense = Expert(page=8).place(arrivals(200, experts=False), None)
    assert torch.equal(dense.shard, RoundRobin(page=8).place(new, None).shard)


def test_key_clusters_find_clusters_and_stay() -> None:
    made = torch.Generator().manual_seed(0)
    group = torch.randint(4, (160,), generator=made)
    centres = torch.randn(4, 2, 8, generator=made) * 5
    keys = (centres[group] + 0.1 * torch.randn(160, 2, 8, generator=made)).transpose(0, 1)
    policy = KeyCluster(page=8, clusters=12)
    places = policy.place(Arrivals(torch.arange(160), keys, None, torch.zeros(2, dtype=torch.int64)), None)
    pure = [group[places.kind == kind].unique().numel() == 1 for kind in places.kind.unique().tolist()]
    assert all(pure) and len(pure) >= 4
    later = Arrivals(torch.arange(160, 164), keys[:, :4], None, torch.tensor([80, 80]))
    again = policy.place(later, places.memory)
    assert torch.equal(again.kind, places.kind[:4]) and again.memory is places.memory


@pytest.mark.parametrize("placement", [RoundRobin(page=4), Expert(page=4), KeyCluster(page=4, clusters=5)])
def test_tables_hold_every_token_once_whatever_the_chunks(placement: Placement) -> None:
    table, slots, start = Table(4, 3, torch.device("cpu"), ("total", "least", "most", "experts")), {}, 0
    keys, kinds = [], []
    for count in (30, 1, 1, 17, 5):
        new = arrivals(count, 3, start)
        new = Arrivals(new.numbers, new.keys, new.experts, table.loads)
        places = placement.place(new, table.memory)
        table.memory = places.memory
        assert new.experts is not None
        page, slot = table.add(new.numbers, places, new.keys, torch.nn.functional.one_hot(new.experts, 8))
        slots |= {int(n): (int(p), int(s)) for n, p, s in zip(new.numbers, page, slot, strict=True)}
        keys.append(new.keys)
        kinds.append(places.kind)
        start += count
    held, kind = torch.cat(keys, 1), torch.cat(kinds)
    assert sorted(table.index[table.index >= 0].tolist()) == list(range(54)) == sorted(slots)
    assert len(set(slots.values())) == 54
    assert all(table.index[page, slot] == number for number, (page, slot) in slots.items())
    for page, numbers in enumerate(table.index.tolist()):
        real = [n for n in numbers if n >= 0]
        assert real == sorted(real) and len({int(kind[n]) for n in real}) == 1
        torch.testing.assert_close(table.summaries["total"][page], held[:, real].sum(1))
        assert torch.equal(table.summaries["least"][page], held[:, real].amin(1))
        assert torch.equal(table.summaries["most"][page], held[:, real].amax(1))
        assert table.summaries["experts"][page].sum() == len(real)
    assert int(table.loads.sum()) == 54
    with pytest.raises(AttachError, match="summaries"):
        table.crop(10)


def test_crop_forgets_and_goes_on() -> None:
    table = Table(4, 2, torch.device("cpu"))
    zeros, keys = torch.zeros(20, dtype=torch.int64), torch.zeros(1, 20, 2)
    kind = torch.arange(20) % 3
    table.add(torch.arange(20), Places(zeros, kind), keys, None)
    copy = table.copied()
    stay = table.crop(13)
    assert sorted(table.index[table.index >= 0].tolist()) == list(range(13)) and len(table.shard) == int(stay.sum())
    assert int((copy.index >= 0).sum()) == 20
    page, slot = table.add(torch.arange(13, 20), Places(zeros[13:], kind[13:]), keys[:, 13:], None)
    assert (
        sorted(table.index.tolist()) == sorted(copy.index.tolist())
        and int(slot.max()) < 4
        and int(page.max()) < len(table.shard)
    )


@pytest.mark.parametrize(
    "made",
    [
        lambda: RoundRobin(page=0),
        lambda: Blocks(block=0),
        lambda: Expert(slack=0.5),
        lambda: KeyCluster(rounds=-1),
        lambda: Summary(keep=0),
        lambda: Summary(by="mean"),  # type: ignore[arg-type]
        lambda: Router(window=-1),
        lambda: Affinity(profile=None, keep=2),  # type: ignore[arg-type]
    ],
)
def test_numbers_that_are_not_allowed(made: Any) -> None:
    with pytest.raises(PolicyError):
        made()


def test_the_former_place_gives_the_same_and_says_so() -> None:
    import tenuto.kv.placements as former
    import tenuto.shards

    with pytest.warns(UserWarning, match=r"tenuto\.kv\.placements is tenuto\.shards now"):
        assert former.RoundRobin is tenuto.shards.RoundRobin
