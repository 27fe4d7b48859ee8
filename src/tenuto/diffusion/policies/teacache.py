"""TeaCache: add up the predicted output change since the last computed step; skip while the sum stays small.

The timestep-modulated input of the first block follows the output's change closely enough that a polynomial fitted per
model can predict one from the other. The prediction is accumulated; below the threshold the stored residual of the
whole stack is reused, at the threshold the step is computed and the sum starts again. First and last step are computed.

What it does not do: one polynomial serves the whole schedule; the sum is a heuristic, not an error bound.

Paper: https://arxiv.org/abs/2411.19108 (section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policies.every_n import StoredResidual, WholeStack
from tenuto.diffusion.policies.first_block import relative_l1
from tenuto.diffusion.policy import Claim, Composition, FeaturePolicy, Paper, Recorder, Scope, Step, StepGate, Streams
from tenuto.errors import CalibrationError, PolicyError

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["AccumulatedChange", "TeaCache"]

DEGREE = 4


@dataclass(frozen=True, slots=True)
class _Sum:
    total: float
    previous: torch.Tensor


@dataclass(frozen=True, slots=True)
class AccumulatedChange(StepGate):
    """Reuse while the accumulated polynomial of the modulated input's change is below ``threshold``.

    ``coefficients``: highest power first.
    """

    threshold: float
    coefficients: tuple[float, ...]

    def init(self) -> _Sum | None:
        return None

    def judge(self, state: _Sum | None, step: Step) -> tuple[Verdict, _Sum]:
        now = step.modulated()
        if state is None:
            return Verdict(reuse=False), _Sum(0.0, now)
        change = relative_l1(now, state.previous, step.reduce)
        if not math.isfinite(change):  # a state that is not finite predicts nothing
            return Verdict(reuse=False), _Sum(0.0, now)
        predicted = float(np.polyval(self.coefficients, change))
        total = state.total + max(predicted, 0.0)
        reuse = total < self.threshold and not step.last
        return Verdict(reuse=reuse, statistic=total, critical=self.threshold), _Sum(total, now)

    def settled(self, state: _Sum, step: Step, verdict: Verdict, computed: bool) -> _Sum:
        return _Sum(0.0, state.previous) if computed else state


class _Pairs(Recorder):
    """Pairs of (input change, output change) between neighbouring steps of a branch."""

    def __init__(self) -> None:
        self.scope: Scope = WholeStack()
        self.before: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.now: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.pairs: list[tuple[float, float]] = []

    def begin(self, generation: int) -> None:
        for branch in list(self.now):
            self._close(branch)
        self.before.clear()

    def observe(self, step: Step, residual: Streams) -> None:
        image, change = step.hidden[0], residual[0]
        if image is None or change is None:
            return
        if step.span.index == 0:  # the signal is read where the gate reads it; the output is that of the last list
            self._close(step.branch)
            self.now[step.branch] = step.modulated(), image + change
        else:
            self.now[step.branch] = self.now[step.branch][0], image + change

    def _close(self, branch: str) -> None:
        """The step that is complete becomes the one before, and a pair with its own predecessor."""
        if branch in self.now and branch in self.before:
            (modulated, output), (old_modulated, old_output) = self.now[branch], self.before[branch]
            self.pairs.append((relative_l1(modulated, old_modulated), relative_l1(output, old_output)))
        if branch in self.now:
            self.before[branch] = self.now.pop(branch)

    def fit(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        self.begin(-1)
        if len(self.pairs) <= DEGREE:
            raise CalibrationError(
                f"{len(self.pairs)} step pairs cannot fit a polynomial of degree {DEGREE}: run more."
            )
        x, y = np.array(self.pairs).T
        return {}, {"coefficients": np.polyfit(x, y, DEGREE).tolist(), "pairs": len(self.pairs)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeaCache(FeaturePolicy):
    """Skip the whole stack while the accumulated predicted change is small.

    Attributes:
        threshold: accumulated relative change of the output that may pass unseen; 0 never reuses.
        warmup: steps at the start that always compute, at least 1.
    """

    threshold: float = 0.1
    warmup: int = 1

    paper: ClassVar[Paper] = Paper(
        "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model",
        "Liu, Zhang, Wang, Wei, Qiu, Zhao, Zhang, Ye, Wan",
        2024,
        "https://arxiv.org/abs/2411.19108",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("speed", "up to 4.41x, VBench score 0.07 % lower", "Open-Sora-Plan", "abstract"),
    )
    calibrated: ClassVar[bool] = True
    sweep: ClassVar[tuple[str, ...]] = (
        "teacache:threshold=0.05",
        "teacache:threshold=0.1",
        "teacache:threshold=0.2",
        "teacache:threshold=0.3",
    )

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.warmup < 1:
            raise PolicyError(
                f"teacache: threshold={self.threshold}, warmup={self.warmup}. "
                "threshold must be zero or more, warmup at least 1."
            )

    def compose(self, profile: Profile | None) -> Composition:
        if profile is None or "coefficients" not in profile.numbers:
            raise CalibrationError(
                "teacache needs the coefficients of its polynomial: run `tenuto calibrate teacache`."
            )
        gate = AccumulatedChange(self.threshold, tuple(profile.numbers["coefficients"]))
        return Composition(WholeStack(), gate, StoredResidual())

    def recorder(self) -> Recorder:
        return _Pairs()
