"""RazorAttention: heads are found on repeated tokens; the best keep everything, others one mean of what they drop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from views import scored_of, view_of

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.attend import QUERIES
from tenuto.kv.policies.razor_attention import (
    LENGTH,
    REPEATS,
    Compensate,
    FetchingHeads,
    RazorAttention,
    RepeatedTokens,
    in_proportion,
)
from tenuto.kv.policy import Scored
from tenuto.testing.kv import TinyLM, follow, tokens


def test_echo_and_induction_scores() -> None:
    """Every query from the second repetition on gives 0.5 to the token one repetition before, 0.25 to the one after
    that, the rest to the context of ten; a second query head gives 0.75 to the token after. The first repetition, which
    attends to itself, does not count."""
    assert LENGTH * REPEATS <= QUERIES, "the attention of all repetitions must be seen at once"
    count = LENGTH * REPEATS
    attention = torch.zeros(2, count, 10 + count)
    attention[:, :LENGTH, 10:].diagonal(dim1=1, dim2=2)[:] = 1.0
    for at in range(LENGTH, count):
        attention[0, at, [3, 10 + at - LENGTH, 10 + at - LENGTH + 1]] = torch.tensor([0.25, 0.5, 0.25])
        attention[1, at, [3, 10 + at - LENGTH + 1]] = torch.tensor([0.25, 0.75])
    state = RepeatedTokens().observe(torch.zeros(10 + count, 2), attention, torch.arange(count))
    assert torch.equal(state, torch.tensor([[0.5, 0.75]]).expand(10 + count, 2))


def test_earlier_repetitions_count_as_well() -> None:
    count = LENGTH * REPEATS
    attention = torch.zeros(1, count, count)
    for at in range(3 * LENGTH, count):
        attention[0, at, at % LENGTH] = 1.0
    echo, induction = RepeatedTokens().observe(torch.zeros(count, 2), attention, torch.arange(count))[0]
    assert (float(echo), float(induction)) == pytest.approx((1 / 3, 0.0))


def heads(*scores: tuple[float, float]) -> list[Scored]:
    """Two layers of two heads with ten entries each, the last two protected, and these echo and induction scores."""
    states = torch.tensor(scores).view(2, 2, 1, 2).expand(2, 2, 10, 2)
    scored = scored_of([[0.0] * 10] * 2, protected=2)
    return [replace(scored, view=replace(scored.view, state=state)) for state in states]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (22, [[2, 10], [10, 2]]),
        (26, [[4, 10], [10, 4]]),
        (16, [[3, 2], [10, 2]]),
        (10, [[3, 3], [2, 2]]),
        (4, [[2, 2], [2, 2]]),
        (36, [[10, 10], [10, 10]]),
    ],
)
def test_the_best_heads_keep_everything_as_far_as_it_goes(total: int, expected: list[list[int]]) -> None:
    """Keeping everything costs seven beyond what is protected: an entry of room for the mean is not needed there."""
    layers = heads((0.1, 0.2), (0.9, 0.1), (0.3, 0.8), (0.2, 0.3))
    counts = FetchingHeads(induction=0.25, echo=0.25).allocate(layers, total)
    assert [c.tolist() for c in counts] == expected


def test_shares_in_proportion() -> None:
    caps = torch.tensor([1, 10, 10])
    assert in_proportion(torch.tensor([1.0, 1.0, 2.0]), caps, 10).tolist() == [1.0, 3.0, 6.0]
    assert in_proportion(torch.zeros(3), caps, 5).tolist() == [1.0, 2.0, 2.0]
    assert in_proportion(torch.ones(3), caps, 99).tolist() == [1.0, 10.0, 10.0]


def test_the_mean_stands_for_all_it_took_in() -> None:
    view = view_of(torch.tensor([[[1.0], [3.0], [5.0], [7.0]]]), values=torch.tensor([[[2.0], [4.0], [0.0], [1.0]]]))
    (part,) = Compensate().reduce(view, torch.tensor([[True, False, False, True]]))
    assert part.keys[:, 0].tolist() == [4.0, 1.0, 7.0] and part.values[:, 0].tolist() == [2.0, 2.0, 1.0]
    assert part.weights is not None and part.weights.tolist() == [2.0, 1.0, 1.0] and part.index.tolist() == [-1, 0, 3]
    again = replace(
        view_of(part.keys[None], values=part.values[None]), index=part.index[None].long(), weights=part.weights[None]
    )
    for first in (False, True):
        (later,) = Compensate().reduce(again, torch.tensor([[first, True, False]]))
        assert later.keys[:, 0].tolist() == [(2 * 4 + 7) / 3, 1.0] and later.index.tolist() == [-1, 0]
        assert later.weights is not None and later.weights.tolist() == [3.0, 1.0]
    (same,) = Compensate().reduce(again, torch.tensor([[True, True, True]]))
    assert torch.equal(same.keys, part.keys) and same.index.tolist() == [-1, 0, 3]


@pytest.mark.usefixtures("one_thread")
def test_the_scores_are_those_of_the_whole_sequence_run_at_once() -> None:
    """The prompt and the repeated tokens in one plain forward call, its attention read off layer by layer."""
    model, prompt, count = TinyLM(), tokens(70), LENGTH * REPEATS
    (drawn,) = RepeatedTokens().replay(prompt[0])
    assert drawn.unflatten(0, (REPEATS, -1)).eq(drawn[:LENGTH]).all() and len(drawn.unique()) > 30
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model(torch.cat([prompt, drawn[None]], 1), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    with attach(model, RazorAttention(), budget=MemoryBudget.keep(1)) as run:
        follow(model, cache := run.cache(), prompt, tokens(0))
    for layer, attention in zip(cache.engine, plain, strict=True):
        for head in range(2):
            scores = []
            for shift in (0, 1):
                means = []
                for query in attention[0, 2 * head : 2 * head + 2]:
                    found = [
                        sum(float(query[70 + at, 70 + at + shift - LENGTH * n]) for n in range(1, at // LENGTH + 1))
                        for at in range(LENGTH, count)
                    ]
                    means.append(sum(found) / len(found))
                scores.append(max(means))
            state = layer.held.column(head, "state")  # type: ignore[union-attr]
            assert state is not None
            torch.testing.assert_close(state, torch.tensor([scores]).expand(70, 2), atol=1e-5, rtol=1e-3)


@pytest.mark.usefixtures("one_thread")
def test_some_heads_are_whole_and_no_token_is_lost() -> None:
    with attach(model := TinyLM(), RazorAttention(), budget=MemoryBudget.keep(0.6)) as run:
        follow(model, cache := run.cache(), tokens(150), tokens(0))
        lengths = [count for layer in cache.counts() for count in layer[0]]
        assert lengths.count(150) in (1, 2) and sum(lengths) <= 0.6 * 150 * 6
        follow(model, cache, tokens(30, 1), tokens(0))
        for layer in cache.engine:
            assert layer.held is not None
            for segment in range(2):
                weights = layer.held.column(segment, "weights")
                assert weights is not None and float(weights.sum()) == 180


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="induction and echo must be from 0 to 1"):
        RazorAttention(induction=2.0)
    policy = catalog.parse("knorm+razor_attention", "kv")
    with pytest.raises(PolicyError, match="write razor_attention first"):
        with attach(model := TinyLM(), policy, budget=MemoryBudget.keep(0.5)):  # type: ignore[arg-type]
            model(tokens(90))
