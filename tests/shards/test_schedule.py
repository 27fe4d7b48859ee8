"""Demotion moves pages and changes nothing that is read; deletion is as if masked; each utility lets its pages go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_sharded import mild
from transformers import DynamicCache

from tenuto.errors import AttachError, InputError, PolicyError, StoreError
from tenuto.shards import Expert, KeyCluster, RoundRobin, Schedule, Summary, shard
from tenuto.shards.policies.pikv import UTILITIES
from tenuto.shards.schedule import PageUse
from tenuto.testing.kv import TOLERANCE, follow, tokens
from tenuto.tiers.host import HostTier

pytestmark = pytest.mark.usefixtures("one_thread")


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)


USE = PageUse(
    step=9,
    last=column(1, 9, 5, 3, 7),
    count=column(1, 2, 9, 1, 3),
    mass=column(0.9, 0.1, 0.5, 0.4, 0.2),
    share=column(0.1, 0.2, 0.3, 0.4, 0.0),
    newest=column(7, 99, 200, 300, 400),
    oldest=column(0, 90, 190, 290, 390),
)
FIRST_TO_GO = {"h2o": 1, "streaming_llm": 1, "quest": 4, "flexgen": 4, "lru": 0, "lru+": 0, "adakv": 3, "duo": 1}


@pytest.mark.parametrize("utility", UTILITIES)
def test_the_least_useful_page_goes_first(utility: str) -> None:
    policy, held = Schedule(resident=0.8, utility=utility, slack=0), torch.ones(5, dtype=torch.bool)
    assert policy.demoted(USE, held, 5).tolist() == [FIRST_TO_GO[utility]]
    held[FIRST_TO_GO[utility]] = False
    assert policy.demoted(USE, held, 5).tolist() == [], "what is below has gone already"
    half = Schedule(resident=0.4, utility=utility, slack=0).demoted(USE, torch.ones(5, dtype=torch.bool), 5)
    assert len(half) == 3 and FIRST_TO_GO[utility] in half.tolist()
    assert len(Schedule(resident=0.4, utility=utility, slack=3).demoted(USE, held, 5)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("utility", UTILITIES)
def test_what_is_read_is_the_same(utility: str) -> None:
    model, prompt, steps = mild("olmoe"), tokens(150, rows=2), tokens(12, 1, rows=2)
    few = Summary(keep=0.25, sinks=2, window=4)
    for placement in (RoundRobin(page=4), KeyCluster(page=4, clusters=8)):
        with shard(model, placement, shards=2, selector=few) as run:
            wanted, whole = follow(model, run.cache(), prompt, steps), run.summary()
        tier, policy = HostTier(2**26), Schedule(resident=0.4, utility=utility, slack=1)
        with shard(model, placement, shards=2, selector=few, schedule=policy, tier=tier) as run:
            cache = run.cache()
            found, facts = follow(model, cache, prompt, steps), run.summary()
            assert (found - wanted).abs().max() <= TOLERANCE, "the same entries in another order"
            assert facts["bytes_held"] < 0.65 * whole["bytes_held"] and tier.bytes_used() >= facts["bytes_below"] > 0
            assert facts["pages_fetched"] > 0 and facts["stall_s"] > 0 and facts["dropped_mass"] is None
            assert facts["tokens_read"] == whole["tokens_read"]
            again = [follow(model, c, tokens(9, 5, rows=2), tokens(4, 6, rows=2)) for c in (cache.fork(), cache)]
            assert torch.equal(again[0], again[1]), "a fork shares what is below"


def test_all_pages_read_is_exact_too() -> None:
    model, prompt, steps = mild("mixtral"), tokens(60, rows=2), tokens(4, 1, rows=2)
    wanted = follow(model, DynamicCache(config=model.config), prompt, steps)
    with shard(model, RoundRobin(page=4), shards=2, schedule=Schedule(resident=0.3, slack=0)) as run:
        assert (follow(model, run.cache(), prompt, steps) - wanted).abs().max() <= TOLERANCE
        assert run.summary()["pages_fetched"] > 0


def test_a_penalty_spares_fetches() -> None:
    model, fetched = mild("olmoe"), []
    for penalty in (0.0, 3.0):
        few = Summary(keep=0.25, sinks=2, window=4, penalty=penalty)
        with shard(model, RoundRobin(page=4), shards=2, selector=few, schedule=Schedule(resident=0.4, slack=0)) as run:
            follow(model, run.cache(), tokens(150), tokens(12, 1))
            fetched.append(run.summary()["pages_fetched"])
    assert fetched[1] < 0.8 * fetched[0], fetched


def test_what_cannot_be_is_said() -> None:
    class Forgetful(HostTier):
        def get(self, key: str) -> bytes | None:
            return None

    model = mild("llama")
    policy = Schedule(resident=0.3, slack=0)
    with shard(model, RoundRobin(page=4), schedule=policy, tier=Forgetful(2**26)) as run:
        cache = run.cache()
        model(tokens(60), past_key_values=cache)
        with pytest.raises(AttachError, match="demoted"):
            cache.crop(-1)
        with pytest.raises(StoreError, match="gave no page"):
            model(tokens(1), past_key_values=cache)
        with pytest.raises(AttachError, match="incomplete"):
            model(tokens(1), past_key_values=cache)
    with pytest.raises(InputError, match="schedule="):
        with shard(model, RoundRobin(), tier=HostTier(2**20)):
            pass
    with pytest.raises(PolicyError, match="Did you mean 'lru'"):
        Schedule(utility="lur")
    with pytest.raises(PolicyError, match="resident"):
        Schedule(resident=0)


def indices(cache: Any) -> list[list[int]]:
    """Numbers of the tokens held, per row of the first layer."""
    return [sorted(n for n in table.index.flatten().tolist() if n >= 0) for table in cache.engine[0].tables]


@pytest.mark.parametrize("shards", [1, 3])
def test_deleted_tokens_are_as_if_masked(shards: int) -> None:
    model, prompt, steps = mild("olmoe"), tokens(180), tokens(40, 1)
    policy = Schedule(resident=0.4, utility="streaming_llm", slack=1, lossy=True)  # the same pages in every layer
    plain, wanted, found = DynamicCache(config=model.config), [], []
    with torch.no_grad():
        wanted.append(model(prompt, past_key_values=plain).logits[:, -1])
    with shard(model, RoundRobin(page=4), shards=shards, schedule=policy) as run, torch.no_grad():
        cache, kept = run.cache(), []
        found.append(model(prompt, past_key_values=cache).logits[:, -1])
        for at in range(40):
            kept.append(indices(cache)[0])
            found.append(model(steps[:, at : at + 1], past_key_values=cache).logits[:, -1])
        facts = run.summary()
    assert kept[0] == list(range(180)), "a prompt is read in full"
    assert len(kept[1]) < 120 and set(range(4)) <= set(kept[-1]) and set(range(219 - 64, 219)) <= set(kept[-1])
    with torch.no_grad():
        for at, numbers in enumerate(kept):
            mask = torch.zeros(1, 181 + at, dtype=torch.int64)
            mask[0, [*numbers, 180 + at]] = 1
            place = torch.tensor([[180 + at]])
            given = {"attention_mask": mask, "position_ids": place, "past_key_values": plain}
            wanted.append(model(steps[:, at : at + 1], **given).logits[:, -1])
    assert (torch.stack(found) - torch.stack(wanted)).abs().max() <= TOLERANCE
    held = sum(len(row) for row in indices(cache))
    assert facts["tokens_deleted"] == 3 * (220 - held) == 4 * facts["pages_deleted"] > 0
    assert facts["bytes_held"] < 0.6 * facts["bytes_full"] and "bytes_below" not in facts


@pytest.mark.slow
@pytest.mark.parametrize("utility", UTILITIES)
def test_deletion_keeps_to_its_share_with_any_utility_codec_and_placement(utility: str) -> None:
    model, prompt, steps = mild("olmoe"), tokens(200, rows=2), tokens(30, 1, rows=2)
    for placement in (RoundRobin(page=4), Expert(page=4)):
        policy = Schedule(resident=0.5, utility=utility, slack=0, lossy=True)
        all_held = Summary(keep=1.0)
        with shard(model, placement, shards=2, selector=all_held, schedule=policy, codec="int8") as run:
            cache = run.cache()
            follow(model, cache, prompt, steps)
            copies = [follow(model, c, tokens(3, 5, rows=2), tokens(4, 6, rows=2)) for c in (cache.fork(), cache)]
            assert torch.equal(copies[0], copies[1])
        for layer in cache.engine:
            for table in layer.tables:
                numbers = table.index[table.index >= 0]
                assert len(numbers.unique()) == len(numbers), "no token twice"
                full = int((table.counts == 4).sum())
                assert full <= 0.5 * (full + int(table.gone.sum())) + 2, "the share is of all there ever were"
                assert set(range(4)) | set(range(237 - 60, 237)) <= set(numbers.tolist()), "sinks and newest stay"


def test_deletion_has_to_be_asked_for() -> None:
    assert not Schedule().lossy
    model = mild("llama")
    with pytest.raises(InputError, match="give a selector as well"):
        with shard(model, RoundRobin(), schedule=Schedule(utility="h2o", lossy=True)):
            pass
    with pytest.raises(InputError, match="not lossy"):
        with shard(model, RoundRobin(), schedule=Schedule(lossy=True), tier=HostTier(2**20)):
            pass
