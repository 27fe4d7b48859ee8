"""Splits of a prompt into spans: against brute force, and at every size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tenuto.errors import InputError
from tenuto.prompt.spans import Spans, coherence, exact, greedy, split


def price(costs: np.ndarray, lengths: list[int]) -> float:
    starts = np.cumsum([0, *lengths])[:-1]
    return float(sum(costs[length - 1, start] for start, length in zip(starts, lengths, strict=True)))


def drawn(tokens: int, most: int, seed: int = 0) -> np.ndarray:
    states = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(seed))
    return coherence(states, most, torch.ones(tokens)).numpy()


@pytest.mark.parametrize("count", range(3, 10))
def test_the_split_is_the_best_of_all(count: int) -> None:
    costs = drawn(9, 3, count)
    every = [list(each) for each in itertools.product((1, 2, 3), repeat=count) if sum(each) == 9]
    assert price(costs, exact(costs, count)) == pytest.approx(min(price(costs, each) for each in every), abs=1e-5)


def test_greedy_meets_the_count_and_is_never_better() -> None:
    costs = drawn(400, 8)
    for count in (60, 133, 200, 300, 399):
        best, quick = exact(costs, count), greedy(costs, count)
        assert sum(quick) == sum(best) == 400
        assert len(quick) == len(best) == count
        assert max(quick) <= 8
        assert price(costs, best) <= price(costs, quick) + 1e-3


@pytest.mark.parametrize("alike", [True, False])
def test_coherence_is_size_times_variance(alike: bool) -> None:
    states = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    weight = torch.ones(12) if alike else torch.arange(1.0, 13.0)
    table = coherence(states, 4, weight)
    for length, start in ((1, 0), (2, 3), (4, 8)):
        span, mass = slice(start, start + length), weight[start : start + length, None]
        mean = (states[span] * mass).sum(0) / mass.sum()
        expected = float((mass * (states[span] - mean).pow(2)).sum())
        assert float(table[length - 1, start]) == pytest.approx(expected, abs=1e-3)
    assert torch.isinf(table[3, 9:]).all()
    assert not torch.isinf(table[3, :9]).any()


@pytest.mark.parametrize("tokens", [1, 2, 7, 8193])
def test_equal_tokens_are_split_to_the_count(tokens: int) -> None:
    table = coherence(torch.ones(tokens, 4), 8, torch.ones(tokens))
    for count in {max(-(-tokens // 8), 1), max(tokens // 2, 1), tokens}:
        spans = split(table, count)
        assert len(spans) == count
        assert int(spans.sizes.sum()) == tokens
        assert int(spans.sizes.max()) <= 8
        assert torch.equal(spans.starts[1:], spans.ends[:-1] + 1)


def test_an_entry_stands_at_its_heaviest_token_and_the_last_one_at_the_end() -> None:
    spans = Spans.of_lengths([3, 1, 2, 4])
    assert spans.places.tolist() == [2, 3, 5, 9]
    weighed = Spans(spans.starts, spans.ends, torch.tensor([5.0, 1, 5, 0, 3, 2, 1, 9, 0, 0]))
    assert weighed.places.tolist() == [2, 3, 4, 9]
    assert Spans.of_tokens(torch.tensor([1, 4])).places.tolist() == [1, 4]


def test_what_cannot_be_split_is_refused() -> None:
    table = coherence(torch.ones(20, 2), 4, torch.ones(20))
    for count in (4, 21):
        with pytest.raises(InputError, match="cannot become"):
            split(table, count)


def test_means_are_of_the_tokens_of_a_span_and_single_tokens_stay_bit_for_bit() -> None:
    states = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(1))
    spans = Spans(torch.tensor([0, 2, 6]), torch.tensor([0, 4, 6]))  # tokens 1 and 5 are dropped
    mean = spans.mean(states)
    assert torch.equal(mean[:, [0, 2]], states[:, [0, 6]])
    assert torch.allclose(mean[:, 1], states[:, 2:5].mean(1))
