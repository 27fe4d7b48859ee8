"""Expected Attention: the closed form, against draws of the same Gaussian and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from views import view_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.expected_attention import ExpectedAttention, FutureAttention, mean_rotation
from tenuto.kv.policy import View
from tenuto.kv.rope import Rope

pytestmark = pytest.mark.usefixtures("one_thread")
STILL = Rope(torch.zeros(1))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_score_of_a_small_case() -> None:
    """Nothing turns; queries 1 and 3 in one channel: mean 2, variance 1, logits 2k + k² / 2; values of norm 2."""
    keys = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    queries = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    view = replace(view_of(keys, queries, torch.full_like(keys, 2.0**0.5)), rope=STILL)
    expected = (torch.tensor([0.0, 2.5, 6.0]).softmax(0) + 0.5) * 2
    torch.testing.assert_close(FutureAttention(8, 0.5, 0).score(view)[0], expected)
    half = (torch.tensor([0.0, 0.5 * 2 + 0.25 / 2, 0.5 * 4 + 0.25 * 2]).softmax(0)) * 2
    torch.testing.assert_close(FutureAttention(8, 0.0, 0).score(replace(view, scaling=0.5))[0], half)


def test_sinks_have_no_part() -> None:
    """The first entry is not in the softmax, and its query is not in the sample: what is left is the case above."""
    keys = torch.tensor([[[50.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
    queries = torch.tensor([[[-90.0, 0.0], [1.0, 0.0], [3.0, 0.0]]])
    view = replace(view_of(keys, queries, torch.ones_like(keys) / 2**0.5), rope=STILL)
    torch.testing.assert_close(FutureAttention(8, 0.0, 1).score(view)[0, 1:], torch.tensor([0.0, 2.5]).softmax(0))


def test_the_mean_rotation_is_the_mean_of_rotations() -> None:
    rope, x = Rope(torch.tensor([1.0, 0.1])), random(6)
    turned = rope.rotate(x.expand(7, 6), torch.arange(20, 27)).mean(0)
    torch.testing.assert_close(mean_rotation(rope, 20, 7, 6) @ x, turned)


def _rotated(queries: torch.Tensor, rope: Rope, start: int) -> View:
    """A view whose probes are ``queries``, turned to positions from ``start``."""
    at = torch.arange(start, start + queries.shape[1])
    keys = random(1, 9, queries.shape[-1], seed=3)
    return replace(view_of(keys), rope=rope, queries=rope.rotate(queries, at), query_positions=at, query_index=at)


def test_the_closed_form_is_the_mean_over_draws() -> None:
    """One future position, so that the rotation is a rotation: the mean of exp(q·k) over many rotated draws."""
    rope, queries = Rope(torch.tensor([0.7, 0.2])), 0.5 * random(2, 40, 4, seed=1) + random(2, 1, 4, seed=2)
    view = _rotated(queries, rope, 10)
    centred = queries - queries.mean(1, keepdim=True)
    factor = torch.linalg.cholesky(centred.transpose(1, 2) @ centred / 40)
    draws = queries.mean(1, keepdim=True) + random(2, 200_000, 4, seed=5) @ factor.transpose(1, 2)
    draws = rope.rotate(draws, torch.tensor([9]))
    exponentials = (draws @ view.keys[0].T).exp().mean(1)
    expected = (exponentials / exponentials.sum(-1, keepdim=True)).mean(0)
    expected *= view.values[0].norm(dim=-1)
    torch.testing.assert_close(FutureAttention(1, 0.0, 0).score(view)[0], expected, rtol=0.05, atol=1e-3)


def test_the_score_does_not_change_with_where_queries_stood() -> None:
    rope, queries = Rope(torch.tensor([0.7, 0.2])), random(2, 40, 4, seed=1)
    scorer = FutureAttention()
    here, there = (scorer.score(_rotated(queries, rope, start)) for start in (10, 300))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-5)


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="future must be at least 1"):
        ExpectedAttention(future=0)
    with pytest.raises(PolicyError, match="rotary positions of fixed frequencies"):
        FutureAttention().score(view_of(random(1, 5, 4), random(2, 2, 4)))
