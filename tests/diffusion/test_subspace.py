"""Fits in a subspace: what a basis keeps, a known law at full width, and the bytes of a fit and its profile."""

from __future__ import annotations

import torch
from stepping import make_step

import tenuto
from tenuto.calibration import Profile
from tenuto.diffusion.policy import Streams
from tenuto.diffusion.refit import SEEN_GRAM_BYTES, LadderRecorder
from tenuto.diffusion.subspace import SKETCH, WIDTH, ProjectedLadder, RangeFinder

CHANNELS, TOKENS, STEPS, LONGEST = 3072, 40, 6, 2
DIRECTIONS = 12


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_leading_directions_are_found_and_lengths_are_kept() -> None:
    channels, rank = 400, 20
    finder = RangeFinder(channels, torch.device("cpu"))
    directions = noise(rank, channels, seed=1)
    for seed in range(3):
        finder.add(noise(2, 50, rank, seed=10 + seed) @ directions)
    basis = finder.basis().float()
    assert basis.shape == (channels, WIDTH + SKETCH)
    leading = basis[:, :WIDTH]
    torch.testing.assert_close(leading.T @ leading, torch.eye(WIDTH), atol=2e-3, rtol=0)  # half precision
    inside = noise(64, rank, seed=2) @ directions
    torch.testing.assert_close(inside @ leading @ leading.T, inside, atol=0.02 * float(inside.abs().max()), rtol=0)
    rows = noise(4096, channels, seed=3)
    ratio = float((rows @ basis).square().sum() / rows.square().sum())
    assert abs(ratio - 1) < 0.15  # a spread of sqrt(2 / 32 / 272) between sketches


def wide(seed: int) -> list[tuple[Streams, Streams]]:
    """A random walk of two streams in a few directions of 3,072, whose residual is a linear map of it."""
    found: list[tuple[Streams, Streams]] = []
    for stream in range(2):
        place = noise(DIRECTIONS, CHANNELS, seed=77 + stream) / CHANNELS**0.5
        law = noise(DIRECTIONS, DIRECTIONS, seed=99) / DIRECTIONS**0.5
        inner = noise(STEPS, 1, TOKENS, DIRECTIONS, seed=1000 * stream + seed)
        walk = (inner * torch.tensor([1.0] + [0.3] * (STEPS - 1))[:, None, None, None]).cumsum(0)
        found.append((walk @ place, walk @ law @ place))  # type: ignore[arg-type]
    return [tuple((image[kind][i], text[kind][i]) for kind in (0, 1)) for image, text in [found] for i in range(STEPS)]  # type: ignore[misc]


def watched() -> LadderRecorder:
    recorder = tenuto.FastCache(longest=LONGEST).recorder()
    assert isinstance(recorder, LadderRecorder)
    for number in range(7):
        recorder.begin(number)
        for index, (hidden, residual) in enumerate(wide(number)):
            recorder.observe(make_step(index, hidden, timestep=900.0 - 100 * index), residual)
    return recorder


def test_a_model_of_3072_channels_and_two_streams_is_fitted_in_little_memory() -> None:
    recorder = watched()
    tensors, numbers = recorder.fit()
    cells = len(recorder.grams)
    assert cells == 2 * sum(min(LONGEST, index) for index in range(STEPS)), "a cell per stream, step and gap"
    gram = sum(g.xx.nbytes + g.xy.nbytes for g in recorder.grams.values()) / cells
    kept = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith("basis")) / cells
    bases = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("basis"))
    every = 50 * 9 * 2  # one cell per step, gap and stream of a model that is fitted in full
    assert gram * every <= 1.5 * SEEN_GRAM_BYTES and SEEN_GRAM_BYTES <= 2**30
    assert kept * every + bases <= 64 * 10**6
    seen = next(iter(recorder.held_open[0].args[0].values()))  # type: ignore[attr-defined]
    assert all(t.shape[-1] == WIDTH + SKETCH for streams in seen[0] for t in streams if t is not None)

    profile = Profile(policy="fastcache", fingerprint="", numbers=numbers, tensors=tensors)
    estimator = tenuto.FastCache(longest=LONGEST, fit="profile").compose(profile).estimator
    assert isinstance(estimator, ProjectedLadder)
    steps, state = wide(50), None
    for index in (1, 3):
        state = estimator.observe(state, make_step(index, steps[index][0]), steps[index][1])
    for index in (4, 5):
        guess = estimator.estimate(state, make_step(index, steps[index][0], timestep=900.0 - 100 * index))
        for stream in range(2):
            g, true, before = guess[stream], steps[index][1][stream], steps[3][1][stream]
            assert g is not None and true is not None and before is not None
            assert float((g - true).norm()) < 0.1 * float((before - true).norm())


def test_what_lies_outside_the_basis_is_repeated() -> None:
    recorder = watched()
    tensors, numbers = recorder.fit()
    profile = Profile(policy="fastcache", fingerprint="", numbers=numbers, tensors=tensors)
    estimator = tenuto.FastCache(longest=LONGEST, fit="profile").compose(profile).estimator
    hidden, residual = wide(51)[3]
    basis = tensors["basis.0.0"].float()[:, :WIDTH]
    outside = noise(1, TOKENS, CHANNELS, seed=5)
    outside = outside - outside @ basis @ basis.T
    shifted: Streams = (residual[0] + outside, residual[1])  # type: ignore[operator]
    now = make_step(4, wide(51)[4][0], timestep=500.0)
    plain, with_it = (
        estimator.estimate(estimator.observe(None, make_step(3, hidden), r), now)[0] for r in (residual, shifted)
    )
    assert plain is not None and with_it is not None
    assert float((with_it - plain - outside).norm()) < 0.02 * float(outside.norm())  # half precision, maps of 8 bits
