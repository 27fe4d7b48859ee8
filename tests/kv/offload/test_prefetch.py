"""Prefetching: the same logits; what is left out is counted exactly; a dead or hanging store ends in clear words."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
import torch

from tenuto.budget import MemoryBudget
from tenuto.errors import StoreError
from tenuto.kv.attach import attach
from tenuto.kv.offload.pool import Pool
from tenuto.kv.offload.predict import Guess, predictors
from tenuto.kv.offload.prefetch import Prefetcher
from tenuto.kv.offload.read import logits, mass, read
from tenuto.kv.offload.settings import Prefetch
from tenuto.kv.policies.louiskv import LouisKV
from tenuto.kv.policies.quest import Quest
from tenuto.kv.rope import Rope
from tenuto.testing.kv import TinyLM, follow, tokens
from tenuto.tiers.host import HostTier

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = Quest(pages=2, page=8, sinks=2, window=8)
SMALL = MemoryBudget.tokens(2 + 8 + 5 * 8)


class Gate(HostTier):
    """Counts what is fetched, and may be shut, or dead."""

    def __init__(self) -> None:
        super().__init__(2**26)
        self.open, self.dead, self.asked = threading.Event(), False, list[str]()
        self.open.set()

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self.asked += keys
        self.open.wait(20)
        if self.dead:
            raise ConnectionError("gone")
        return [self.get(key) for key in keys]


@pytest.mark.slow
@pytest.mark.parametrize("policy", [FEW, LouisKV(pages=2, page=8, sinks=2, window=8)])
def test_logits_are_the_same(policy: Quest | LouisKV) -> None:
    found = []
    for prefetch in (None, Prefetch(), Prefetch(ahead=2, margin=1)):
        with attach(TinyLM(), policy, budget=SMALL, prefetch=prefetch) as run:
            found.append(follow(run.model, run.cache(), tokens(150, rows=2), tokens(25, 1, rows=2)))
            assert run.model.generate(tokens(150), num_beams=2, max_new_tokens=4).shape[1] == 154
    assert not [block for block in run.layout.blocks if block._forward_pre_hooks]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_one_fetch_per_page_however_many_ask() -> None:
    pool = Pool(tier := Gate(), Prefetch())
    page = pool.put(torch.randn(2, 4, 8), torch.randn(2, 4, 8))
    tier.open.clear()
    where = torch.device("cpu")
    fetches = [pool.fetch([page], where, early=early)[0] for early in (True, False, True)]
    assert not fetches[0].done()
    tier.open.set()
    assert all(fetch.result(5) is fetches[0].result(5) for fetch in fetches)
    assert tier.asked == [page.name] and pool.books.pages_fetched == 1


def test_what_best_effort_leaves_out_is_counted_exactly() -> None:
    tier = Gate()
    with attach(TinyLM(), FEW, budget=SMALL, tier=tier, prefetch=Prefetch(miss="best_effort")) as run:
        follow(run.model, cache := run.cache(), tokens(150), tokens(0))
        for layer in cache.engine:
            layer.paged.rows[0].hot.clear()  # type: ignore[union-attr]
        tier.open.clear()
        run.model(tokens(1, 1), past_key_values=cache)
        skips = list(cache.pool.skips.open)  # type: ignore[union-attr]
        tier.open.set()
        facts = run.summary()
    assert len(skips) == 3 and facts["pages_skipped"] == 6 and facts["mass_unknown"] == 0
    expected = 0.0
    for layer, skip in zip(cache.engine, skips, strict=True):
        rest = layer.holding().store
        keys = torch.stack([rest.keys[rest.run(head)] for head in range(2)])
        left = torch.cat([fetch.result()[0] for fetch in skip.fetches], 1)
        shares = logits(skip.query[:, None], torch.cat([left, keys], 1), skip.scaling, None).softmax(-1)
        expected += float(shares[..., : left.shape[1]].sum(-1).mean()) / 3
    assert facts["dropped_mass"] == pytest.approx(expected, rel=1e-4) and expected > 0


def test_a_store_that_hangs_or_dies() -> None:
    """A timeout is kept and nothing deadlocks; waiting on a dead store is a StoreError; best effort counts it."""
    tier = Gate()
    with attach(TinyLM(), FEW, budget=SMALL, tier=tier, prefetch=Prefetch(miss="timeout", timeout=0.02)) as run:
        follow(run.model, cache := run.cache(), tokens(150), tokens(0))
        tier.open.clear()
        start = time.monotonic()
        for step in range(10):
            run.model(tokens(1, step), past_key_values=cache)
        assert time.monotonic() - start < 60, "the gate is shut: without the timeout this never ends"
        tier.open.set()
        assert run.summary()["pages_skipped"] > 0
    for miss in ("wait", "best_effort"):
        tier = Gate()
        with attach(TinyLM(), FEW, budget=SMALL, tier=tier, prefetch=Prefetch(miss=miss)) as run:  # type: ignore[arg-type]
            follow(run.model, cache := run.cache(), tokens(150), tokens(0))
            tier.dead = True
            if miss == "wait":
                with pytest.raises(StoreError, match=r"Gate failed over a page: ConnectionError\('gone'\)"):
                    follow(run.model, cache, tokens(1, 1), tokens(20, 2))
                continue
            follow(run.model, cache, tokens(1, 1), tokens(20, 2))
            facts = run.summary()
            assert facts["fetches_failed"] > 0 and facts["mass_unknown"] == facts["pages_skipped"] > 0


def test_layers_ahead_follow_the_latency() -> None:
    prefetcher = Prefetcher(Prefetch(), [None] * 30)
    assert prefetcher.ahead(0.01) == 1
    prefetcher.layer_time = 0.004
    assert [prefetcher.ahead(latency) for latency in (0.0, 0.003, 0.01, 9.0)] == [1, 1, 3, 29]
    assert Prefetcher(Prefetch(ahead=5), [None] * 30).ahead(9.0) == 5


def test_a_layer_predicts_itself_exactly_and_errors_are_learnt() -> None:
    """Given its own input, a predictor gives the queries that the layer asks with."""
    with attach(TinyLM(), FEW, budget=SMALL) as run, torch.no_grad():
        seen: dict[int, torch.Tensor] = {}
        for number, block in enumerate(run.layout.blocks):
            block.register_forward_pre_hook(lambda module, args, number=number: seen.update({number: args[0]}))
        follow(run.model, cache := run.cache(), tokens(150), tokens(1, 1))
        makers = predictors(run.layout.blocks, [spec.site.rope for spec in run.layout.layers if spec.site])
        for layer, maker in zip(cache.engine, makers, strict=True):
            assert maker is not None and layer.paged is not None
            asked = layer.paged.rows[0].asked
            turned = maker.rope.rotate(maker(seen[layer.site.layer][:, -1])[0], torch.full((4,), 150))
            torch.testing.assert_close(turned, asked, atol=1e-4, rtol=1e-4)
    rope, guess = Rope(torch.tensor([0.5])), Guess()
    for truth, lacked in ((4.0, 1.0), (4.0, 0.75 * 1.0 + 0.25 * 4.0)):
        raw = torch.zeros(1, 2)
        guess.correct(raw)
        guess.learn(rope.rotate(torch.full((1, 2), truth), torch.tensor([7])), 7, rope)
        torch.testing.assert_close(guess.lacked, torch.full((1, 2), lacked))
    torch.testing.assert_close(guess.correct(torch.ones(1, 2)), torch.full((1, 2), 2.75))


def test_read_and_mass_by_hand() -> None:
    query = torch.tensor([[[1.0, 0.0]]])
    keys, values = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    output, lse = read(query, keys, values, 1.0, None)
    torch.testing.assert_close(output[0, 0], torch.tensor([0.0, 1.0]).softmax(0))
    left = torch.tensor([[[2.0, 5.0]]])
    shares = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert mass(query[:, 0], lse[:, 0], left, 1.0, None) == pytest.approx(float(shares[2]))
