"""Fitted where a generation has as many denoising steps as the profile, else online: chosen for every generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.online import OnlineEstimator, OnlineGate
from tenuto.diffusion.policy import Estimator, Step, StepGate, Streams
from tenuto.diffusion.trajectory import StepSchedule

__all__ = ["FallbackEstimator", "FallbackGate"]


@dataclass(frozen=True, slots=True)
class FallbackGate(StepGate):
    """``fitted`` if ``schedule`` is the generation's, else ``online``. A generation whose length is unknown counts as
    one of the schedule's."""

    fitted: StepGate
    online: OnlineGate
    schedule: StepSchedule
    shared: ClassVar[bool] = False

    def _gate(self, step: Step) -> StepGate:
        return self.fitted if self.schedule.serves(step.total) else self.online

    def init(self) -> None:
        return None

    def judge(self, state: Any, step: Step) -> tuple[Verdict, Any]:
        return self._gate(step).judge(state, step)

    def settled(self, state: Any, step: Step, verdict: Verdict, computed: bool) -> Any:
        return self._gate(step).settled(state, step, verdict, computed)


@dataclass(frozen=True, slots=True)
class FallbackEstimator(Estimator):
    """As the gate."""

    fitted: Estimator
    online: OnlineEstimator
    schedule: StepSchedule

    def _estimator(self, step: Step) -> Estimator:
        return self.fitted if self.schedule.serves(step.total) else self.online

    def init(self) -> None:
        return None

    def ready(self, state: Any, step: Step) -> bool:
        return self._estimator(step).ready(state, step)

    def estimate(self, state: Any, step: Step) -> Streams:
        return self._estimator(step).estimate(state, step)

    def observe(self, state: Any, step: Step, residual: Streams) -> Any:
        return self._estimator(step).observe(state, step, residual)

    def expected(self, state: Any) -> torch.Tensor | None:
        return self.online.expected(state)

    def flops(self, state: Any, step: Step) -> float:
        return self._estimator(step).flops(state, step)

    def flops_observed(self, state: Any, step: Step) -> float:
        return self._estimator(step).flops_observed(state, step)

    def nbytes(self) -> int:
        return self.fitted.nbytes()
