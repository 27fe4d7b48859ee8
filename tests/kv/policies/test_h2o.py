"""H2O: attention received adds up while an entry is held; half of the budget is recent, the rest the largest sums."""

from __future__ import annotations

import pytest
import torch
from views import scored_of

from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policies.h2o import H2O, HeavyRecent, ReceivedAttention
from tenuto.testing.kv import TinyLM, follow, tokens


def test_what_is_received_adds_up() -> None:
    attention = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], [[1.0, 0.0, 0.0], [0.0, 0.75, 0.25]]])
    state = ReceivedAttention().observe(torch.tensor([[1.0], [2.0], [0.0]]), attention, torch.tensor([1, 2]))
    assert state.tolist() == [[2.75], [3.5], [0.75]]


def test_half_is_recent_and_half_heavy() -> None:
    scored = scored_of([[9.0, 1.0, 5.0, 7.0, 0.0, 2.0], [0.0, 9.0, 8.0, 7.0, 6.0, 0.0]])
    kept = HeavyRecent(0.5).select(scored, torch.tensor([4, 3]))
    assert kept.tolist() == [[1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 1]]


@pytest.mark.usefixtures("one_thread")
def test_each_step_the_least_received_goes() -> None:
    """A full cache of twelve: eleven stay and one comes. Five of the eleven are recent; the least of the first seven,
    by what it received until now (here made up), is evicted, and the others go on adding up."""
    made = torch.Generator().manual_seed(0)
    with attach(model := TinyLM(), H2O(), budget=MemoryBudget.tokens(12)) as run, torch.no_grad():
        follow(model, cache := run.cache(), tokens(30), tokens(0))
        store = cache.engine[1].held.store  # type: ignore[union-attr]
        for step in range(6):
            assert store.state is not None
            store.state.copy_(torch.rand(24, 1, generator=made))
            before = [(cache.survivors(1, 0, head), store.entries(head).state.clone()) for head in range(2)]  # type: ignore[union-attr]
            model(tokens(1, step), past_key_values=cache)
            store = cache.engine[1].held.store  # type: ignore[union-attr]
            for head, (index, state) in enumerate(before):
                least = int(state[:7].argmin())
                stay = torch.arange(12) != least
                assert cache.survivors(1, 0, head) == [*torch.tensor(index)[stay].tolist(), 30 + step]
                after = store.entries(head).state
                assert after is not None
                received = after - torch.cat([state[stay], torch.zeros(1, 1)])
                assert float(received.min()) >= 0 and float(received.sum()) == pytest.approx(2), (
                    "one of each query head"
                )


@pytest.mark.parametrize("options", [{"recent": 1.5}, {"every": 0}])
def test_what_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="recent must be from 0 to 1"):
        H2O(**options)  # type: ignore[arg-type]
