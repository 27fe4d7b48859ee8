"""A policy that never reuses and shows every computed span to a recorder: how calibration watches a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policy import Composition, Estimator, FeaturePolicy, Recorder, Step, StepGate, Streams

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["Always", "Recording"]


@dataclass(frozen=True, slots=True)
class Always(StepGate):
    """Always compute."""

    def init(self) -> None:
        return None

    def judge(self, state: None, step: Step) -> tuple[Verdict, None]:
        return Verdict(reuse=False), None

    def settled(self, state: None, step: Step, verdict: Verdict, computed: bool) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Watch(Estimator):
    recorder: Recorder

    def init(self) -> None:
        return None

    def ready(self, state: None, step: Step) -> bool:
        return False

    def estimate(self, state: None, step: Step) -> Streams:
        raise NotImplementedError("a recorder estimates nothing")

    def observe(self, state: None, step: Step, residual: Streams) -> None:
        self.recorder.observe(step, residual)


@dataclass(frozen=True, slots=True)
class Recording(FeaturePolicy):
    """The policy to attach while ``recorder`` watches: its scope, nothing reused."""

    watcher: Recorder
    warmup: int = 1

    def compose(self, profile: Profile | None) -> Composition:
        return Composition(self.watcher.scope, Always(), _Watch(self.watcher))
