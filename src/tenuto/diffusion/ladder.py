"""The ladder of surrogates: fitted linear maps that stand in for a span's residual, cheapest first.

For a span whose last computed step is b, ``gap`` steps ago, the residual ``r = output - input`` is estimated from
``x = [h - h_b, gap * slope, r_b, 1]``: the change of the input, the slope of the residual between the last two computed
steps, the residual itself, a constant. Rungs:

    residual   r_b                           no operations, no weights: the null model every other rung must beat
    affine     a * r_b + c                   one scale and one shift per channel
    low_rank   r_b + x A B                   A ``[3 channels + 1, rank]``, B ``[rank, channels]``
    full       r_b + x W                     W ``[3 channels + 1, channels]``

All are solved in closed form from the same Gram matrices. A *cell* is one span, stream, bin of the schedule and gap;
per cell the cheapest rung is chosen whose held-out error is within ``SLACK`` of the best rung's.

The published full map ``W h + b`` (FastCache, https://arxiv.org/abs/2505.20353, algorithm 1) does not look at the
cached output; this one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tenuto.diffusion.policy import Estimator, Step, Streams
from tenuto.diffusion.ridge import Gram
from tenuto.diffusion.trajectory import Past, StepSchedule, follow
from tenuto.errors import CalibrationError

__all__ = ["RUNGS", "Cell", "Ladder", "Weights", "flops_per_token", "packed", "rung_of", "solve", "unpacked"]

RUNGS = ("residual", "affine", "low_rank", "full")
Weights = tuple[torch.Tensor, ...]
SCALE = ".scale"
Cell = tuple[int, int, int, int]
"""Span, stream, bin, gap."""


def solve(rung: str, gram: Gram, ridge: float, rank: int) -> Weights:
    """A rung's weights for one cell, in float16, from the Gram matrix of ``x`` and ``r - r_b``."""
    if rung == "residual":
        return ()
    if rung == "affine":
        return (_affine(gram, ridge).to(torch.float16),)
    solved = gram.solve_low_rank(ridge, rank) if rung == "low_rank" else (gram.solve(ridge),)
    return tuple(part.to(torch.float16) for part in solved)


def _affine(gram: Gram, ridge: float) -> torch.Tensor:
    """``[2, channels]``: scale and shift, by least squares per channel."""
    width = gram.xy.shape[1]
    place = torch.arange(2 * width, 3 * width)
    square, total = gram.xx[place, place] * (1 + ridge), gram.xx[place, -1]
    count = gram.xx[-1, -1]
    product, target = gram.xy[place, torch.arange(width)], gram.xy[-1]
    scale = (count * product - total * target) / (count * square - total**2).clamp_min(1e-12)
    return torch.stack([1 + scale, (target - scale * total) / count.clamp_min(1)])


def _apply(past: Past, gap: int, stream: int, hidden: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The estimated residual of one stream."""
    before, residual, slope = past.hidden[stream], past.residual[stream], past.slope[stream]
    if before is None or residual is None:
        raise CalibrationError("a stream appeared that was not there at the last computed step")
    if not weights:
        return residual
    down, *up = weights
    width = hidden.shape[-1]
    if len(down) == 2:
        return torch.addcmul(down[1], residual, down[0])
    flat = residual.reshape(-1, width)
    code = torch.addmm(down[-1] if up else down[-1] + flat, (hidden - before).reshape(-1, width), down[:width])
    code.addmm_(flat, down[2 * width : 3 * width])
    if slope is not None:
        code.addmm_(slope.reshape(-1, width), down[width : 2 * width], alpha=gap)
    return (torch.addmm(flat, code, up[0]) if up else code).view_as(residual)


@dataclass(frozen=True, slots=True)
class Ladder(Estimator):
    """Each cell's rung, as it was fitted. A cell that was never seen repeats the residual.

    ``bins``: the schedule is divided evenly into so many; ``cells`` holds the weights, which stay where they are first
    used.
    """

    schedule: StepSchedule
    bins: int
    cells: Mapping[Cell, Weights] = field(hash=False)
    _placed: dict[Any, Weights] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def init(self) -> Past | None:
        return None

    def ready(self, state: Past | None, step: Step) -> bool:
        return state is not None

    def weights(self, step: Step, stream: int, gap: int) -> Weights:
        """What the cell of a step holds."""
        place = self.schedule.place(step.timestep, step.total) * self.bins // len(self.schedule.timesteps)
        return self.cells.get((step.span.index, stream, place, gap), ())

    def _at(self, step: Step, stream: int, gap: int, like: torch.Tensor) -> Weights:
        """The weights of a cell, moved to the model's device and dtype at their first use."""
        weights = self.weights(step, stream, gap)
        key = (id(weights), like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = tuple(part.to(like.device, like.dtype) for part in weights)
        return self._placed[key]

    def estimate(self, state: Past, step: Step) -> Streams:
        gap = step.index - state.index
        return tuple(
            None if h is None or r is None else _apply(state, gap, stream, h, self._at(step, stream, gap, h))
            for stream, (h, r) in enumerate(zip(step.hidden, state.residual, strict=True))
        )

    def observe(self, state: Past | None, step: Step, residual: Streams) -> Past:
        return follow(state, step.index, step.hidden, residual)

    def flops(self, state: Any, step: Step) -> float:
        total = 0.0
        for stream, hidden in enumerate(step.hidden):
            if hidden is not None:
                weights = self.weights(step, stream, step.index - state.index)
                total += hidden.numel() / hidden.shape[-1] * flops_per_token(weights)
        return total

    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for weights in self.cells.values() for part in weights)


def packed(cells: Mapping[Cell, Weights]) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """Cells as tensors to save, and where each cell's rows are: ``[span, stream, bin, gap, rung, row]``.

    Per span, stream and part of a rung there is one int8 tensor of all its rows, and a float16 scale per input (inputs
    differ much in size): ``full.0.0.0``, ``full.0.0.0.scale``. Rounding adds far less than the maps' own error.
    """
    stacks: dict[str, list[torch.Tensor]] = {}
    index: list[list[int]] = []
    for cell, weights in sorted(cells.items()):
        rung = rung_of(weights)
        name = f"{rung}.{cell[0]}.{cell[1]}"
        index.append([*cell, RUNGS.index(rung), len(stacks.get(f"{name}.0", ()))])
        for part, tensor in enumerate(weights):
            stacks.setdefault(f"{name}.{part}", []).append(tensor)
    tensors = {}
    for name, rows in stacks.items():
        whole = torch.stack(rows).float()
        scale = (whole.abs().amax(2, keepdim=True) / 127).clamp_min(1e-7).to(torch.float16)
        tensors[name] = (whole / scale.float()).round().clamp(-127, 127).to(torch.int8)
        tensors[f"{name}{SCALE}"] = scale
    return tensors, index


def unpacked(tensors: Mapping[str, torch.Tensor], index: list[list[int]]) -> dict[Cell, Weights]:
    """The inverse of :func:`packed`, up to rounding."""
    whole = {n: t * tensors[f"{n}{SCALE}"] for n, t in tensors.items() if f"{n}{SCALE}" in tensors}
    cells: dict[Cell, Weights] = {}
    for span, stream, place, gap, rung, row in index:
        parts = (f"{RUNGS[rung]}.{span}.{stream}.{part}" for part in range(2))
        cells[span, stream, place, gap] = tuple(whole[name][row] for name in parts if name in whole)
    return cells


def flops_per_token(weights: Weights) -> float:
    """Operations of a rung for one token; element-wise work counts as zero."""
    return 2.0 * sum(part.numel() for part in weights) if rung_of(weights) in ("low_rank", "full") else 0.0


def rung_of(weights: Weights) -> str:
    """The rung that weights belong to."""
    if not weights:
        return "residual"
    if len(weights) == 2:
        return "low_rank"
    return "affine" if len(weights[0]) == 2 else "full"
