"""Demotion moves pages and changes nothing that is read; each utility lets the pages go that it says."""

from __future__ import annotations

import pytest
import torch
from test_sharded import mild
from transformers import DynamicCache

from tenuto.errors import AttachError, InputError, PolicyError, StoreError
from tenuto.kv.placements import KeyCluster, RoundRobin, Schedule, Summary, shard
from tenuto.kv.placements.schedule import UTILITIES, Use
from tenuto.testing.kv import follow, tokens
from tenuto.tiers.host import HostTier

pytestmark = pytest.mark.usefixtures("one_thread")


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)


USE = Use(
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
            assert (found - wanted).abs().max() <= 1e-5, "the same entries in another order"
            assert facts["bytes_held"] < 0.65 * whole["bytes_held"] and tier.bytes_used() >= facts["bytes_below"] > 0
            assert facts["pages_fetched"] > 0 and facts["stall_s"] > 0 and facts["dropped_mass"] is None
            assert facts["tokens_read"] == whole["tokens_read"]
            again = [follow(model, c, tokens(9, 5, rows=2), tokens(4, 6, rows=2)) for c in (cache.fork(), cache)]
            assert torch.equal(again[0], again[1]), "a fork shares what is below"


def test_all_pages_read_is_exact_too() -> None:
    model, prompt, steps = mild("mixtral"), tokens(60, rows=2), tokens(4, 1, rows=2)
    wanted = follow(model, DynamicCache(config=model.config), prompt, steps)
    with shard(model, RoundRobin(page=4), shards=2, schedule=Schedule(resident=0.3, slack=0)) as run:
        assert (follow(model, run.cache(), prompt, steps) - wanted).abs().max() <= 1e-5
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
