"""Trajectories of a span over denoising steps: what is known from computed steps before a step is decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tenuto.diffusion.policy import Streams
from tenuto.errors import CalibrationError

__all__ = ["Past", "StepSchedule", "Trace", "change_of", "features", "follow", "pairs"]

Trace = dict[tuple[str, int], list[tuple[Streams, Streams]]]


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """The denoising steps a profile was fitted on: ``timesteps`` in order, divided evenly into bins."""

    timesteps: tuple[float, ...]

    def serves(self, total: int | None) -> bool:
        """Whether a generation of ``total`` steps is one of this schedule (None: its length is not known)."""
        return total in (None, len(self.timesteps))

    def place(self, timestep: float, total: int | None) -> int:
        """Which of the calibrated steps a timestep is (the nearest).

        Raises:
            CalibrationError: the generation has another number of steps.
        """
        steps = len(self.timesteps)
        if not self.serves(total):
            raise CalibrationError(
                f"The profile was fitted for {steps} denoising steps; this generation has {total}. "
                f"Pass profile=... of one that was fitted for {total}: tenuto calibrate POLICY --steps {total}."
            )
        return min(range(steps), key=lambda i: abs(self.timesteps[i] - timestep))


@dataclass(frozen=True, slots=True)
class Past:
    """The last two computed steps of a span: ``index``/``hidden``/``residual``, and the ``slope`` per step between
    them."""

    index: int
    hidden: Streams
    residual: Streams
    slope: Streams


def follow(past: Past | None, index: int, hidden: Streams, residual: Streams) -> Past:
    """The past after one more computed step."""
    if past is None:
        return Past(index, hidden, residual, tuple(None if r is None else torch.zeros_like(r) for r in residual))
    pairs = zip(residual, past.residual, strict=True)
    slope = tuple(None if n is None or o is None else (n - o) / (index - past.index) for n, o in pairs)
    return Past(index, hidden, residual, slope)


def change_of(
    hidden: torch.Tensor, reference: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Relative L2 change ``[batch]`` of hidden states ``[batch, tokens, channels]``; ``reduce`` as in ``Step``."""
    squares = torch.stack([_square(hidden - reference), _square(reference)])
    change, size = reduce(squares) if reduce else squares
    ratio: torch.Tensor = (change / size.clamp_min(1e-24)).sqrt()
    return ratio


def _square(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norm: torch.Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=wide)
    return norm.square()


def features(past: Past, gap: int, stream: int, hidden: torch.Tensor) -> torch.Tensor:
    """What the map sees, ``[rows, 3 * channels + 1]``: the reference form of ``Ladder``."""
    before, residual, slope = past.hidden[stream], past.residual[stream], past.slope[stream]
    if before is None or residual is None or slope is None:
        raise CalibrationError("a stream is missing from the past")
    width = hidden.shape[-1]
    columns = [(hidden - before), slope * gap, residual, torch.ones_like(hidden[..., :1])]
    return torch.cat([column.reshape(-1, column.shape[-1]) for column in columns], 1).view(-1, 3 * width + 1)


def pairs(steps: list[tuple[Streams, Streams]], longest: int) -> Iterator[tuple[int, int, Past]]:
    """``(index, gap, past)`` for every step and gap: as if steps had been computed every ``gap`` steps before."""
    for index in range(1, len(steps)):
        for gap in range(1, min(longest, index) + 1):
            last = index - gap
            older = max(last - gap, 0)
            past = follow(None, older, *steps[older]) if older < last else None
            yield index, gap, follow(past, last, *steps[last])
