"""The ladder: every rung against its reference form, packing, operations and bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from stepping import full, make_step

from tenuto.diffusion.ladder import RUNGS, Cell, Ladder, Weights, packed, rung_of, solve, unpacked
from tenuto.diffusion.policy import Streams
from tenuto.diffusion.ridge import Gram
from tenuto.diffusion.trajectory import Past, StepSchedule, features, follow
from tenuto.errors import CalibrationError

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, RANK, BINS, GAPS = 4, 2, 5, 3
SCHEDULE = StepSchedule((900.0, 700.0, 500.0, 300.0, 100.0))
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "residual": (),
    "affine": ((2, WIDTH),),
    "low_rank": ((3 * WIDTH + 1, RANK), (RANK, WIDTH)),
    "full": ((3 * WIDTH + 1, WIDTH),),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def past(seed: int = 1) -> Past:
    """Two computed steps, 1 and 3, of an image stream [2, 3, 4] and a text stream [2, 5, 4] beside it."""
    shapes, found = ((2, 3, WIDTH), (2, 5, WIDTH)), None
    for index in (1, 3):
        hidden, residual = ([noise(*s, seed=seed + 10 * index + k) for s in shapes] for k in (0, 5))
        found = follow(found, index, tuple(hidden), tuple(residual))
    assert found is not None
    return found


def ladder(rung: str, streams: int = 2, bins: int = BINS) -> Ladder:
    cells: dict[Cell, Weights] = {}
    for stream in range(streams):
        for place in range(bins):
            for gap in range(1, GAPS + 1):
                seed = 1000 * stream + 10 * place + gap
                cells[0, stream, place, gap] = tuple(noise(*s, seed=seed + 500 * k) for k, s in enumerate(SHAPES[rung]))
    return Ladder(SCHEDULE, bins, cells)


@pytest.mark.parametrize("gap", [1, 2, 3])
@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_equals_its_reference_form(rung: str, gap: int) -> None:
    known, estimator = past(), ladder(rung)
    hidden = noise(2, 3, WIDTH, seed=30), noise(2, 5, WIDTH, seed=31)
    step = make_step(3 + gap, hidden, timestep=SCHEDULE.timesteps[4])
    found = estimator.estimate(known, step)
    for stream in range(2):
        weights, before = estimator.cells[0, stream, 4, gap], known.residual[stream]
        assert before is not None and rung_of(weights) == rung
        x = features(known, gap, stream, hidden[stream])
        expected = {
            "residual": lambda before, x, w: before,
            "affine": lambda before, x, w: before * w[0][0] + w[0][1],
            "low_rank": lambda before, x, w: before + (x @ w[0] @ w[1]).view_as(before),
            "full": lambda before, x, w: before + (x @ w[0]).view_as(before),
        }[rung](before, x, weights)
        torch.testing.assert_close(found[stream], expected, rtol=1e-5, atol=1e-5)


def test_half_precision_states_stay_so() -> None:
    known = past()
    halves = [tuple(None if t is None else t.bfloat16() for t in streams) for streams in (known.hidden, known.residual)]
    short = Past(known.index, halves[0], halves[1], tuple(None if t is None else t.bfloat16() for t in known.slope))
    for rung in RUNGS:
        found = ladder(rung).estimate(short, make_step(5, halves[0], timestep=300.0))
        assert found[0] is not None and found[0].dtype == torch.bfloat16 and found[0].isfinite().all()


def test_bins_may_be_fewer_than_steps() -> None:
    known, estimator = past(), ladder("full", streams=1, bins=2)
    only: Streams = (known.hidden[0],)
    short = Past(known.index, only, known.residual[:1], known.slope[:1])
    found = [estimator.estimate(short, make_step(4, only, timestep=t))[0] for t in SCHEDULE.timesteps]
    same = [torch.equal(a, b) for a, b in pairwise(found)]  # type: ignore[arg-type]
    assert same == [True, True, False, True], "five steps in two bins: 0 0 0 1 1"


def test_a_cell_never_seen_repeats_the_residual() -> None:
    known = past()
    found = Ladder(SCHEDULE, BINS, {}).estimate(known, make_step(5, known.hidden, timestep=300.0))
    assert all(map(torch.equal, found, known.residual))  # type: ignore[arg-type]


def test_a_stream_without_a_residual_is_not_estimated() -> None:
    image, text = noise(2, 3, WIDTH), noise(2, 5, WIDTH, seed=1)
    estimator = ladder("full", streams=1)
    state = estimator.observe(estimator.init(), make_step(0, (image, text)), (image, None))
    step = make_step(1, (image, text), timestep=700.0)
    assert estimator.ready(state, step)
    found = estimator.estimate(state, step)
    assert found[0] is not None and found[1] is None


def test_operations_and_bytes() -> None:
    step, rows, inputs = make_step(4, (full(0),)), 2 * 3, 3 * WIDTH + 1
    known = past()
    flops = {rung: ladder(rung, streams=1).flops(known, step) for rung in RUNGS}
    assert flops == {
        "residual": 0,
        "affine": 0,
        "low_rank": 2 * rows * (inputs * RANK + RANK * WIDTH),
        "full": 2 * rows * inputs * WIDTH,
    }
    assert ladder("full", streams=1).nbytes() == 4 * BINS * GAPS * inputs * WIDTH


def test_cells_are_packed_and_unpacked() -> None:
    cells: dict[Cell, Weights] = {}
    for place, rung in enumerate(("full", "residual", "low_rank", "affine", "full")):
        cells[0, 0, place, 1] = ladder(rung).cells[0, 0, place, 1]
    tensors, index = packed(cells)
    assert tensors["full.0.0.0"].shape[0] == 2
    found = unpacked(tensors, index)
    assert found.keys() == cells.keys()
    for cell, weights in cells.items():
        for one, other in zip(found[cell], weights, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=0, atol=float(other.abs().max()) / 200)


def test_rungs_are_solved_from_one_gram() -> None:
    x, r = noise(500, 2 * WIDTH, seed=1), noise(500, WIDTH, seed=2)
    inputs = torch.cat([x, r, torch.ones(500, 1)], 1)
    affine = r * torch.tensor([0.5, 1.0, -0.2, 2.0]) + torch.tensor([0.0, 1.0, 2.0, -1.0])
    law = noise(3 * WIDTH + 1, RANK, seed=3) @ noise(RANK, WIDTH, seed=4)
    for target, rungs in ((affine, ("affine", "full")), (r + inputs @ law, ("low_rank", "full"))):
        gram = Gram(3 * WIDTH + 1, WIDTH)
        gram.add(inputs, target - r)
        for rung in rungs:
            weights = [w.float() for w in solve(rung, gram, 1e-8, RANK)]
            found = (
                r * weights[0][0] + weights[0][1]
                if rung == "affine"
                else r + inputs @ weights[0] @ (weights[1] if rung == "low_rank" else torch.eye(WIDTH))
            )
            assert float((found - target).norm() / target.norm()) < 2e-3, rung


def test_the_nearest_calibrated_step() -> None:
    assert [SCHEDULE.place(t, 5) for t in (900.0, 801.0, 799.0, 0.0)] == [0, 0, 1, 4]
    assert SCHEDULE.place(500.0, None) == 2
    with pytest.raises(CalibrationError, match=r"for 5 denoising steps; this generation has 7\. .* --steps 7\.$"):
        SCHEDULE.place(500.0, 7)
