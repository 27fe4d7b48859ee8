"""Few pages: never more than the budget, the right ones where that is known, and the mass dropped is the true one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_sharded import mild

from tenuto.errors import AttachError, CalibrationError
from tenuto.shards import (
    Affinity,
    Expert,
    KeyCluster,
    RoundRobin,
    Router,
    Summary,
    calibrate_affinity,
    shard,
)
from tenuto.shards.policy import Places
from tenuto.shards.selector import Asked, Selector
from tenuto.shards.table import Table
from tenuto.testing.kv import TOLERANCE, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
SUMMARIES = [Summary(by=by, sinks=2, window=4) for by in ("centroid", "bound", "both")]  # type: ignore[arg-type]


def asked(selector: Selector, seen: int = 200, router: torch.Tensor | None = None) -> tuple[Table, Asked, torch.Tensor]:
    """A row of random keys in pages of 8; page 10 has keys like the query, and tokens of expert 3 as page 5 has."""
    made = torch.Generator().manual_seed(0)
    keys, query = torch.randn(2, seen, 8, generator=made), torch.randn(4, 8, generator=made)
    keys[:, 80:88] += 2 * query.unflatten(0, (2, 2)).mean(1)[:, None]
    experts = torch.zeros(seen, dtype=torch.int64)
    experts[80:88], experts[40:48] = 3, 3
    table, zeros = Table(8, 1, torch.device("cpu"), selector.needs), torch.zeros(seen, dtype=torch.int64)
    table.add(torch.arange(seen), Places(zeros, zeros), keys, torch.nn.functional.one_hot(experts, 4).float())
    given = Asked(1, query, 0.5, table.counts, table.index.amax(-1), table.summaries, router)
    return table, given, keys


@pytest.mark.parametrize("selector", SUMMARIES, ids=lambda s: s.by)
def test_summaries_find_the_page(selector: Summary) -> None:
    table, given, keys = asked(selector)
    assert int(selector.score(given).argmax()) == 10
    chosen = selector.choose(table, selector.score(given), 200)
    read = sorted(table.index[chosen].tolist())
    assert len(read) <= 0.125 * 200 and set(read) >= {0, 1, 196, 197, 198, 199, *range(80, 88)}
    if selector.by == "bound":
        logits = torch.einsum("hgd,hnd->hgn", given.queries.unflatten(0, (2, 2)), keys).flatten(0, 1) * 0.5
        from tenuto.shards.policies.page_summary import bound_logits

        assert (logits.unflatten(1, (25, 8)).amax(-1) <= bound_logits(given) + 1e-5).all()


def test_routers_and_affinity_go_by_experts() -> None:
    own = torch.tensor([0.1, 0.1, 0.1, 0.7])
    _, given, _ = asked(Router(), router=own)
    assert set(Router().score(given).topk(2).indices.tolist()) == {5, 10}
    _, blind, _ = asked(Router(), router=None)
    assert int(Router().score(blind).argmax()) == 24, "without a router, the newest"
    from tenuto.calibration import Profile

    pays = torch.ones(4, 4)
    pays[2, 3] = 50.0  # tokens of expert 2 attend to tokens of expert 3
    profile = Profile(policy="affinity", fingerprint="x", tensors={"1": pays})
    alone = Affinity(profile=profile, summary=False)
    two = torch.tensor([0.0, 0.0, 1.0, 0.0])
    _, given, _ = asked(alone, router=two)
    assert set(alone.score(given).topk(2).indices.tolist()) == {5, 10}
    with_keys = Affinity(profile=profile)
    _, given, _ = asked(with_keys, router=two)
    assert int(with_keys.score(given).argmax()) == 10


def test_sinks_and_window_are_read_whatever_the_budget() -> None:
    tight = Summary(keep=0.01, sinks=4, window=16)
    table, given, _ = asked(tight)
    assert sorted(table.index[tight.choose(table, tight.score(given), 200)].tolist()) == [0, 1, 2, 3, *range(184, 200)]
    everything = Summary(keep=1.0)
    table, given, _ = asked(everything)
    assert bool(everything.choose(table, everything.score(given), 200).all())


@pytest.mark.slow
@pytest.mark.parametrize("placement", [RoundRobin(page=4), KeyCluster(page=4, clusters=8), Expert(page=4)])
def test_on_a_model(placement: Any) -> None:
    model, prompt, steps = mild("olmoe"), tokens(120, rows=2), tokens(6, 1, rows=2)
    profile = calibrate_affinity(model, tokens(200, 5))
    assert profile.tensors.keys() == {"1", "2"}, "layer 0 has no router before it"
    with shard(model, placement, shards=2) as run:
        whole = follow(model, run.cache(), prompt, steps)
    few: dict[str, Any] = {"keep": 0.25, "sinks": 2, "window": 4}
    for selector in (Summary(**few), Router(**few), Affinity(profile=profile, **few)):
        with shard(model, placement, shards=2, selector=selector) as run:
            cache = run.cache()
            found, facts = follow(model, cache, prompt, steps), run.summary()
            second = cache.fork()
            again = [follow(model, c, tokens(1, 7, rows=2), tokens(3, 8, rows=2)) for c in (cache, second)]
        assert torch.equal(again[0], again[1]), "a fork is independent"
        assert torch.equal(found[:, 0], whole[:, 0]), "prefills read everything"
        assert 0 < facts["tokens_read"] <= 0.25 * facts["tokens_held"]
        assert 0 < facts["dropped_mass"] < 1 and (found - whole).abs().max() > 1e-4
        with shard(model, placement, shards=2, selector=selector, measure=False) as run:
            assert torch.equal(follow(model, run.cache(), prompt, steps), found), "measuring changes nothing"
            assert run.summary()["dropped_mass"] is None
    with shard(model, placement, shards=2, selector=Summary(keep=1.0)) as run:
        assert (follow(model, run.cache(), prompt, steps) - whole).abs().max() <= TOLERANCE
        assert run.summary()["dropped_mass"] == 0


def test_the_mass_dropped_is_the_true_one() -> None:
    """Against transformers' own attention weights, for the one step and layer where hidden states are still equal."""
    model, ids = mild("llama"), tokens(60)
    few = Summary(keep=0.3, sinks=2, window=4)
    with shard(model, RoundRobin(page=4), shards=2, selector=few) as run:
        cache = run.cache()
        model(ids[:, :59], past_key_values=cache)
        table, seen = cache.engine[0].tables[0], []
        choose = type(few).choose

        def spy(self: Any, table: Table, score: torch.Tensor, length: int) -> torch.Tensor:
            seen.append(table.index[made := choose(self, table, score, length)].tolist())
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(few), "choose", spy)
            model(ids[:, 59:], past_key_values=cache)
        noted = cache.books.dropped[0]
        assert len(table.index) == 15
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions[0][0, :, -1]
    left = [number for number in range(59) if number not in seen[0]]
    assert noted == pytest.approx(float(weights[:, left].sum(-1).mean()), abs=1e-5) and noted > 0.05


def test_what_cannot_be_is_said() -> None:
    model = mild("olmoe")
    with pytest.raises(AttachError, match="no routers"):
        calibrate_affinity(mild("llama"), tokens(40))
    profile = calibrate_affinity(mild("mixtral"), tokens(60))
    with pytest.raises(CalibrationError, match="fingerprint"):
        with shard(model, RoundRobin(), selector=Affinity(profile=profile)):
            pass
