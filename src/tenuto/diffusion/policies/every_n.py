"""EveryN: compute every n-th denoising step, reuse the stored residual of the whole stack in between.

The plainest cache there is, and the baseline every other method must beat. The residual (output minus input of all
blocks together) of the last computed step is added to the current input. No gate, no calibration, one residual of
memory per stream.

What it does not do: it does not look at the sample, so easy and hard steps are skipped alike. FORA reuses the outputs
of each attention and MLP; adding the stack's residual to the fresh input is cheaper and closer.

Paper: FORA, https://arxiv.org/abs/2407.01425 (fixed interval).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policy import Composition, Estimator, FeaturePolicy, Paper, Scope, Span, Step, StepGate, Streams
from tenuto.errors import PolicyError

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["EveryN", "Interval", "StoredResidual", "WholeStack"]


@dataclass(frozen=True, slots=True)
class WholeStack(Scope):
    """All blocks of a list are skipped together."""

    def spans(self, lists: Sequence[int]) -> tuple[Span, ...]:
        starts = [sum(lists[:i]) for i in range(len(lists))]
        return tuple(Span(i, s, s + n - 1) for i, (s, n) in enumerate(zip(starts, lists, strict=True)))


@dataclass(frozen=True, slots=True)
class Interval(StepGate):
    """Compute the first ``warmup`` steps, then every ``n``-th counted from the last of them."""

    n: int
    warmup: int

    def init(self) -> None:
        return None

    def judge(self, state: None, step: Step) -> tuple[Verdict, None]:
        since = step.index - (self.warmup - 1)
        return Verdict(reuse=since > 0 and since % self.n != 0), None

    def settled(self, state: None, step: Step, verdict: Verdict, computed: bool) -> None:
        return None


@dataclass(frozen=True, slots=True)
class StoredResidual(Estimator):
    """The residual of the last computed step, as it was."""

    def init(self) -> Streams | None:
        return None

    def ready(self, state: Streams | None, step: Step) -> bool:
        return state is not None

    def estimate(self, state: Streams, step: Step) -> Streams:
        return state

    def observe(self, state: Streams | None, step: Step, residual: Streams) -> Streams:
        return residual


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryN(FeaturePolicy):
    """Compute every n-th step.

    Attributes:
        n: steps from one computed step to the next, at least 1 (1 never reuses).
        warmup: steps at the start that always compute, at least 1.
    """

    n: int = 2
    warmup: int = 1

    paper: ClassVar[Paper] = Paper(
        "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration",
        "Selvaraju, Ding, Chen, Zharkov, Liang",
        2024,
        "https://arxiv.org/abs/2407.01425",
    )
    sweep: ClassVar[tuple[str, ...]] = ("every_n:n=2", "every_n:n=3", "every_n:n=4", "every_n:n=6")

    def __post_init__(self) -> None:
        if self.n < 1 or self.warmup < 1:
            raise PolicyError(f"every_n: n={self.n}, warmup={self.warmup}. Both must be at least 1.")

    def compose(self, profile: Profile | None) -> Composition:
        return Composition(WholeStack(), Interval(self.n, self.warmup), StoredResidual())
