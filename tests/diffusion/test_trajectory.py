"""What is known from computed steps: slopes, changes, features and calibration pairs by hand."""

from __future__ import annotations

import pytest
import torch

from tenuto.diffusion.policy import Streams
from tenuto.diffusion.trajectory import Past, change_of, features, follow, pairs
from tenuto.errors import CalibrationError


def full(value: float) -> torch.Tensor:
    return torch.full((2, 3, 4), float(value))


def test_follow() -> None:
    first = follow(None, 3, (full(1), None), (full(10), None))
    assert first.index == 3 and first.slope[0] is not None and not first.slope[0].any()
    second = follow(first, 7, (full(2), None), (full(30), None))
    assert second.index == 7
    assert second.hidden[0] is not None and torch.equal(second.hidden[0], full(2))
    assert second.slope[0] is not None and torch.equal(second.slope[0], full(5))  # (30 - 10) / 4 steps
    assert second.slope[1] is None


def test_the_change_is_relative_and_per_sample() -> None:
    reference = torch.stack([full(1)[0], full(2)[0]])
    assert change_of(reference + 0.5, reference).tolist() == pytest.approx([0.5, 0.25])
    assert change_of(full(1).half() * 300, full(1).half() * 200).tolist() == pytest.approx([0.5, 0.5]), "no overflow"
    assert change_of(full(0), full(0)).tolist() == [0, 0]


def test_features() -> None:
    past = Past(0, (full(1), None), (full(7), None), (full(0.5), None))
    found = features(past, 3, 0, full(4))
    assert found.shape == (6, 13)
    assert torch.equal(found, torch.tensor([3.0] * 4 + [1.5] * 4 + [7.0] * 4 + [1.0]).expand(6, 13))
    with pytest.raises(CalibrationError, match="a stream is missing"):
        features(past, 3, 1, full(4))


def test_pairs_are_as_if_every_gap_th_step_had_been_computed() -> None:
    steps: list[tuple[Streams, Streams]] = [((full(i),), (full(i * i),)) for i in range(6)]
    found = {(index, gap): past for index, gap, past in pairs(steps, 3)}
    assert set(found) == {(i, g) for i in range(1, 6) for g in range(1, 4) if g <= i}
    past = found[5, 2]  # computed at 1 and 3, asked at 5
    assert past.index == 3
    assert past.slope[0] is not None and torch.equal(past.slope[0], full((9 - 1) / 2))
    edge = found[3, 2]  # at 1, and before that only step 0
    assert edge.index == 1 and edge.slope[0] is not None and torch.equal(edge.slope[0], full(1))
    alone = found[2, 2]
    assert alone.index == 0 and alone.slope[0] is not None and not alone.slope[0].any()
