"""FirstBlock: always run the first block; if its residual has barely changed, skip all the others.

The first block's residual is a cheap probe of how much this step differs from the last computed one. On a hit the
stored residual of the remaining blocks is added to the state *after* the first block (adding it to the state before
loses the first block's work, a known defect of copies of this method).

What it does not do: the threshold is a matter of taste, not of error; it needs no calibration and gives no guarantee.

Source: First-Block-Cache in ParaAttention, https://github.com/chengzeyi/ParaAttention (no paper).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policies.every_n import StoredResidual
from tenuto.diffusion.policy import Claim, Composition, FeaturePolicy, Paper, Scope, Span, Step, StepGate
from tenuto.errors import PolicyError

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["AllButFirst", "FirstBlock", "ProbeChange", "relative_l1"]


def relative_l1(
    new: torch.Tensor, old: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> float:
    """``mean|new - old| / mean|old|``, ``reduce`` as in ``Step``; infinite if ``old`` is all zero."""
    sums = torch.stack([(new - old).abs().sum(dtype=torch.float32), old.abs().sum(dtype=torch.float32)])
    change, scale = (reduce(sums) if reduce else sums).tolist()
    return change / scale if scale > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class AllButFirst(Scope):
    """The first block always runs (the probe); the rest of each list is skipped together."""

    def spans(self, lists: Sequence[int]) -> tuple[Span, ...]:
        spans = [Span(0, 0, 0, always=True)]
        start = 1
        for end in [sum(lists[: i + 1]) for i in range(len(lists))]:
            if end > start:
                spans.append(Span(len(spans), start, end - 1))
            start = end
        return tuple(spans)


@dataclass(frozen=True, slots=True)
class ProbeChange(StepGate):
    """Reuse while the probe's relative L1 distance to the last computed step's probe is below ``threshold``."""

    threshold: float

    def init(self) -> torch.Tensor | None:
        return None

    def judge(self, state: torch.Tensor | None, step: Step) -> tuple[Verdict, torch.Tensor | None]:
        probe = step.probe[0] if step.probe else None
        if state is None or probe is None:
            return Verdict(reuse=False), state
        change = relative_l1(probe, state, step.reduce)
        return Verdict(reuse=change < self.threshold, statistic=change, critical=self.threshold), state

    def settled(self, state: torch.Tensor | None, step: Step, verdict: Verdict, computed: bool) -> torch.Tensor | None:
        return step.probe[0] if computed and step.probe else state


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBlock(FeaturePolicy):
    """Skip all but the first block while its residual barely changes.

    Attributes:
        threshold: relative change of the first block's residual below which the rest is reused; 0 never reuses.
        warmup: steps at the start that always compute, at least 1.
    """

    threshold: float = 0.1
    warmup: int = 1

    paper: ClassVar[Paper] = Paper(
        "First-Block-Cache (ParaAttention)", "Cheng", 2024, "https://github.com/chengzeyi/ParaAttention"
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("speed", "2x", "FLUX.1-dev and HunyuanVideo, NVIDIA L20", "diffusers' guide to ParaAttention"),
    )
    sweep: ClassVar[tuple[str, ...]] = (
        "first_block:threshold=0.03",
        "first_block:threshold=0.05",
        "first_block:threshold=0.1",
        "first_block:threshold=0.2",
    )

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.warmup < 1:
            raise PolicyError(
                f"first_block: threshold={self.threshold}, warmup={self.warmup}. "
                "threshold must be zero or more, warmup at least 1."
            )

    def compose(self, profile: Profile | None) -> Composition:
        return Composition(AllButFirst(), ProbeChange(self.threshold), StoredResidual())
