"""Steps and short schedules by hand, for the tests of the policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tenuto
from tenuto.diffusion.policy import FeaturePolicy, Span, Step, Streams
from tenuto.testing import TinyDiT, denoise

__all__ = ["decisions", "full", "make_step"]


def full(value: float, tokens: int = 3) -> torch.Tensor:
    return torch.full((2, tokens, 4), float(value))


def make_step(
    index: int = 0,
    hidden: Streams = (None,),
    *,
    probe: Streams | None = None,
    modulated: Callable[[], torch.Tensor] = lambda: torch.empty(0),
    total: int | None = None,
    timestep: float = 0.0,
    span: Span = Span(0, 0, 3),  # noqa: B008 (frozen)
    branch: str = "cond",
) -> Step:
    return Step(index, total, timestep, branch, span, True, hidden, probe, modulated)


def decisions(policy: FeaturePolicy, steps: int = 10, **options: Any) -> str:
    """What the policy decides at each step of a tiny model's generation: "c", "r" or "f" for the last span."""
    model = TinyDiT()
    with tenuto.attach(model, policy, **options) as run:
        denoise(model, steps=steps)
    last = {event.step: event.decision[0] for event in run.telemetry.events}
    return "".join(last[step] for step in sorted(last))
