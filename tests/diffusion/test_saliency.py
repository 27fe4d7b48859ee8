"""Which tokens are chosen, and what the others get, on states where the answer is known."""

from __future__ import annotations

import pytest
import torch
from stepping import make_step

import tenuto
from tenuto.diffusion.policies.every_n import Interval, StoredResidual, WholeStack
from tenuto.diffusion.policy import Composition, Corrector
from tenuto.diffusion.saliency import MergedTokens, MotionTokens, density, motion, peaks, top
from tenuto.testing import TinyDiT, denoise

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = [MotionTokens(0.5), MergedTokens(0.5)]


def test_tokens_that_moved_since_the_last_computed_step_are_chosen() -> None:
    start = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    corrector = MotionTokens(0.25)
    state = corrector.observe(corrector.init(), make_step(0, (start,)), (None,))
    now = start.clone()
    now[0, [2, 5]] += 0.5
    now[1, [0, 7]] -= 0.1
    tokens = corrector.select(state, make_step(3, (now,)))
    assert tokens is not None and [sorted(row) for row in tokens.tolist()] == [[2, 5], [0, 7]]
    assert motion(now, start)[0, 2] == pytest.approx(4 * 0.5**2)
    fresh, estimate = torch.ones(2, 2, 4), torch.zeros(2, 8, 4)
    merged = corrector.correct(state, make_step(3, (now,)), tokens, estimate, fresh)
    assert merged.sum(-1).tolist() == [[0, 0, 4, 0, 0, 4, 0, 0], [4, 0, 0, 0, 0, 0, 0, 4]]


def test_a_fraction_is_at_least_one_token() -> None:
    score = torch.tensor([[1.0, 3.0, 2.0]])
    assert [top(score, f).tolist() for f in (0.01, 0.6, 1.0)] == [[[1]], [[1, 2]], [[1, 2, 0]]]


@pytest.mark.parametrize("corrector", BOTH)
def test_nothing_is_chosen_before_something_was_computed(corrector: Corrector) -> None:
    assert corrector.select(corrector.init(), make_step(1, (torch.zeros(1, 4, 2),))) is None


def clusters() -> torch.Tensor:
    """Two samples of three clusters: tokens 0 to 3, 4 to 6, 7; the densest token of each is its first."""
    centres = torch.tensor([0.0, 0, 0, 0, 10, 10, 10, 30])
    spread = torch.tensor([0.0, 0.2, -0.2, 0.5, 0, 0.2, -0.2, 0])
    line = centres + spread
    return torch.stack([line, line.flip(0)])[..., None].expand(-1, -1, 4) / 2


def test_one_representative_per_cluster_and_its_innovation_for_the_members() -> None:
    hidden = clusters()
    corrector = MergedTokens(3 / 8, neighbours=2)
    state = corrector.observe(corrector.init(), make_step(0, (hidden - 1,)), (None,))
    step = make_step(1, (hidden,))
    tokens = corrector.select(state, step)
    assert tokens is not None and [sorted(row) for row in tokens.tolist()] == [[0, 4, 7], [0, 3, 7]]
    estimate = torch.arange(8.0).view(1, 8, 1).expand(2, 8, 4)
    fresh = estimate.take_along_dim(tokens[..., None], 1) + (tokens[..., None] + 1)
    result = corrector.correct(state, step, tokens, estimate, fresh) - estimate
    assert result[..., 0].tolist() == [[1, 1, 1, 1, 5, 5, 5, 8], [1, 4, 4, 4, 8, 8, 8, 8]]


def test_a_cluster_that_moves_comes_before_one_that_does_not() -> None:
    hidden = torch.tensor([0.0, 0.1, 0.2, 10.0, 10.1, 10.2]).view(1, 6, 1)
    for moved in (range(3), range(3, 6)):
        before = hidden.clone()
        before[0, list(moved)] -= 1
        corrector = MergedTokens(1 / 6, neighbours=2)
        tokens = corrector.select(before, make_step(1, (hidden,)))
        assert tokens is not None and int(tokens) in moved


def test_density_does_not_depend_on_scale() -> None:
    hidden = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    near, far = (torch.cdist(h, h).square() for h in (hidden, 1000 * hidden))
    assert torch.allclose(density(near, 3), density(far, 3), rtol=1e-3)
    assert (density(near, 3) > 0.05).all() and (density(near, 3) < 1).all()
    alike = density(torch.zeros(1, 4, 4), 5)
    assert torch.equal(alike, torch.ones(1, 4)), "equal tokens, and more neighbours than there are"


def test_peaks_of_equal_scores_are_finite() -> None:
    squares = torch.cdist(clusters(), clusters()).square()
    assert peaks(squares, torch.ones(2, 8)).isfinite().all()


@pytest.mark.parametrize("corrector", BOTH)
def test_on_a_model_in_half_precision(corrector: Corrector, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = Composition(WholeStack(), Interval(2, 1), StoredResidual(), corrector)
    monkeypatch.setattr(tenuto.EveryN, "compose", lambda self, profile: composed)
    model = TinyDiT()
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        result = denoise(model)
    assert result.isfinite().all()
    assert {event.tokens for event in run.telemetry.events if event.decision == "correct"} == {0.5}
    assert run.telemetry.flops < run.telemetry.full_flops
    half = TinyDiT().to(torch.bfloat16)
    x, label = torch.randn(2, 6, 16).to(torch.bfloat16), torch.tensor([1, 2])
    with torch.no_grad(), tenuto.attach(half, tenuto.EveryN(n=2)) as run:
        outputs = [half(x + i / 8, torch.full((2,), 900.0 - i, dtype=torch.bfloat16), label) for i in range(4)]
    assert all(output.dtype == torch.bfloat16 and output.isfinite().all() for output in outputs)
    assert run.telemetry.reuse_ratio > 0
