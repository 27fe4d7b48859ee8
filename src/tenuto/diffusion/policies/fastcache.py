"""FastCache: a statistical gate on the error of a linear estimate, both learned on the way or fitted beforehand.

Without a fit (``fit="online"``; "auto" where no profile serves) the estimate is a forecast whose coefficients are
learned at computed steps, and which pays back what earlier estimates fell short of; the gate follows the errors that
estimates would have had there (``tenuto.diffusion.online``). Nothing is known before two steps were computed. The rest
of this page is about the fitted form.

A span's residual is estimated by a linear map of what is known before computing it: the change of the span's input
since the last computed step, the slope of the residual between the last two computed steps, and that residual itself
(``tenuto.diffusion.ladder``). The maps are fitted once per model in closed form, first on uncached and then on cached
generations, one per span, schedule bin and number of steps since the last computed one. The gate
(``tenuto.diffusion.gate``) tests, at false-reuse rate ``alpha``, whether the map's error will stay within what is left
of an error budget that every estimate spends from and every computed step renews.

Null hypothesis of the test: the estimate's error exceeds what is left. Statistic: the squared relative change of the
span's input since the last computed step. Degrees of freedom: effective ones, by moment matching.

With ``tokens`` the tokens that moved most are computed exactly at estimated steps, with the keys and values of all
(``tenuto.diffusion.saliency``); ``merge`` computes representatives chosen by k-nearest-neighbour density instead.

``gate="published"`` is the paper's test instead: chi-square with tokens x channels degrees of freedom on the change
from one step to the next relative to the state's own norm. It passes every change below about 100 per cent, so it never
rejects, whatever ``alpha`` is: only ``longest`` ends a skip. It is there to be looked at.

What it does not do: one decision serves all samples of a batch (the worst sample decides). The published maps are
never fitted; that is not reproduced here.

Paper: FastCache, https://arxiv.org/abs/2505.20353 (statistical gate, section 3; linear approximation, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from scipy.stats import chi2

from tenuto.budget import ErrorBudget
from tenuto.diffusion.fallback import FallbackEstimator, FallbackGate
from tenuto.diffusion.gate import Gate, Verdict, level_for
from tenuto.diffusion.ladder import RUNGS, Ladder, unpacked
from tenuto.diffusion.online import OnlineEstimator, OnlineGate
from tenuto.diffusion.policies.every_n import WholeStack
from tenuto.diffusion.policy import (
    Claim,
    Composition,
    Estimator,
    FeaturePolicy,
    Paper,
    Recorder,
    Scope,
    Span,
    Step,
    StepGate,
)
from tenuto.diffusion.refit import LadderRecorder, Sample, error_ratios
from tenuto.diffusion.saliency import MergedTokens, MotionTokens
from tenuto.diffusion.subspace import ProjectedLadder
from tenuto.diffusion.trajectory import StepSchedule, change_of
from tenuto.errors import CalibrationError, PolicyError, closest

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["BudgetGate", "Chunks", "FastCache", "PublishedGate", "false_reuse_rates"]

RANK = 64
MARGIN = 0.25
GATES = ("calibrated", "published")
FITS = ("auto", "profile", "online")
REHEARSED = (0.1, 0.2, 0.4, 0.8)
NEEDED = {"span", "longest", "rung", "timesteps", "bins", "cells", "gates", "levels"}

_Table = tuple[tuple[tuple[tuple[float, float, float], ...], ...], ...]


@dataclass(frozen=True, slots=True)
class Chunks(Scope):
    """Spans of ``size`` blocks; 0 takes the whole list."""

    size: int

    def spans(self, lists: Sequence[int]) -> tuple[Span, ...]:
        spans: list[Span] = []
        for whole in WholeStack().spans(lists):
            size = self.size or whole.blocks
            for first in range(whole.first, whole.last + 1, size):
                spans.append(Span(len(spans), first, min(first + size - 1, whole.last)))
        return tuple(spans)


@dataclass(frozen=True, slots=True)
class _GateState:
    """The last computed step, its input, what has been spent, and what an estimate at this step would cost."""

    index: int
    hidden: torch.Tensor
    budget: ErrorBudget
    charge: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class BudgetGate(StepGate):
    """Reuse while the calibrated bound on the map's error fits into what is left of the error budget.

    Every estimate is charged its bound. Besides, the largest error that calibration has seen, and ``MARGIN`` of it
    more, must fit into ``rtol``, so that hardly any estimate is ever off by more, and into what is left of ``total``,
    which it is charged to. ``table[span][step][gap - 1]`` is
    ``(scale, dof, worst)``: of the test (``tenuto.diffusion.gate``), and the largest ratio of squared error to
    squared change.
    """

    alpha: float
    level: float
    budget: ErrorBudget
    longest: int
    schedule: StepSchedule
    table: _Table
    shared: ClassVar[bool] = False

    def init(self) -> _GateState | None:
        return None

    def judge(self, state: _GateState | None, step: Step) -> tuple[Verdict, _GateState | None]:
        place = self.schedule.place(step.timestep, step.total)
        image = step.hidden[0]
        if state is None or image is None:
            return Verdict(reuse=False), state
        gap = step.index - state.index
        if gap > self.longest:
            return Verdict(reuse=False), state
        change = float(change_of(image, state.hidden, step.reduce).max())
        scale, dof, worst = self.table[step.span.index][place][gap - 1]
        gate = Gate(scale=scale, dof=dof, alpha=self.alpha, level=self.level)
        verdict = gate.judge(change, state.budget.left)
        factor = worst**0.5 * (1 + MARGIN)  # largest error to be expected over change
        most = (state.budget.most / factor) ** 2 if factor > 0 else float("inf")
        if most < (verdict.critical or 0.0):
            verdict = replace(verdict, reuse=verdict.reuse and change**2 <= most, critical=most)
        return verdict, replace(state, charge=(gate.bound(change), change * factor))

    def settled(self, state: _GateState | None, step: Step, verdict: Verdict, computed: bool) -> _GateState | None:
        image = step.hidden[0]
        if not computed:
            return replace(state, budget=state.budget.spend(*state.charge)) if state else None
        if image is None:
            return state
        return _GateState(step.index, image, state.budget.renew() if state else self.budget)


@dataclass(frozen=True, slots=True)
class _Previous:
    """The input of the step before, and the last computed step."""

    hidden: torch.Tensor
    computed: int


@dataclass(frozen=True, slots=True)
class PublishedGate(StepGate):
    """The paper's test, as printed: reuse iff ``delta^2 <= chi2_{ND, 1 - alpha} / ND``, delta the relative change of
    the input from one step to the next, N tokens, D channels. At most ``longest`` steps are skipped in a row."""

    alpha: float
    longest: int
    shared: ClassVar[bool] = False

    def init(self) -> _Previous | None:
        return None

    def judge(self, state: _Previous | None, step: Step) -> tuple[Verdict, _Previous | None]:
        image = step.hidden[0]
        if state is None or image is None:
            return Verdict(reuse=False), state
        change = float(change_of(image, state.hidden, step.reduce).max())
        count = int(step.reduce(torch.tensor(image[0].numel(), dtype=torch.float64, device=image.device)))
        critical = float(chi2.ppf(1 - self.alpha, count)) / count
        verdict = Verdict(reuse=change**2 <= critical, statistic=change**2, critical=critical, alpha=self.alpha)
        if step.index - state.computed > self.longest:
            verdict = Verdict(reuse=False)
        return verdict, _Previous(image, state.computed)

    def settled(self, state: _Previous | None, step: Step, verdict: Verdict, computed: bool) -> _Previous | None:
        image = step.hidden[0]
        return _Previous(image, step.index) if computed and image is not None else state


def false_reuse_rates(profile: Profile, generations: Sequence[Sequence[Sample]], alpha: float) -> list[float]:
    """Per generation, how often an estimate's error exceeded the gate's ``1 - alpha`` bound; it should be ``alpha``.

    ``generations`` are estimates and their truth from generations that the profile was not fitted on
    (``tenuto.diffusion.refit``).
    """
    numbers = profile.numbers
    estimator = Ladder(
        StepSchedule(tuple(numbers["timesteps"])), numbers["bins"], unpacked(profile.tensors, numbers["cells"])
    )
    level = level_for(alpha, numbers["levels"])
    rates = []
    for given in generations:
        missed = total = 0
        for (span, step, gap), ratios in error_ratios(estimator, given).items():
            scale, dof, _ = numbers["gates"][span][step][gap - 1]
            bound = Gate(scale=scale, dof=dof, alpha=alpha, level=level).bound(1.0) ** 2
            missed += sum(ratio > bound for ratio in ratios)
            total += len(ratios)
        rates.append(missed / total)
    return rates


@dataclass(frozen=True, slots=True, kw_only=True)
class FastCache(FeaturePolicy):
    """Estimate spans by fitted maps while a calibrated test allows it.

    Attributes:
        alpha: accepted false-reuse rate of the test, in (0, 1): larger reuses more.
        rtol: of the ``ErrorBudget``, the relative error of one estimate; larger reuses more, 0 never.
        total: of the ``ErrorBudget``, the errors of estimates in a row added up.
        fit: "profile" for fitted maps and gates, "online" for what is learned on the way, "auto" for a profile where
            one fits the model and the number of steps, else online.
        gate: "calibrated", or "published" (which ignores rtol and total).
        rung: which maps to fit: "auto" (chosen on held-out generations; takes any profile), "residual", "affine",
            "low_rank" or "full".
        tokens: fraction of the tokens that are computed at estimated steps, those that moved most; 0 none.
        merge: compute representatives of like tokens instead, and correct the others by them (with tokens above 0).
        span: blocks per decision; 0 takes each block list as one.
        longest: most denoising steps since the last computed one, at least 1.
        warmup: steps at the start that always compute, at least 1.
    """

    alpha: float = 0.05
    rtol: float = 0.1
    total: float = float("inf")
    fit: str = "auto"
    gate: str = "calibrated"
    rung: str = "auto"
    tokens: float = 0.0
    merge: bool = False
    span: int = 0
    longest: int = 9
    warmup: int = 2

    paper: ClassVar[Paper] = Paper(
        "FastCache: Fast Caching for Diffusion Transformer Through Learnable Linear Approximation",
        "Liu, Zhang, Li, Yu, Lengerich, Wu",
        2025,
        "https://arxiv.org/abs/2505.20353",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "FID and speed, beside 4.45 and 1.00x without a cache",
            "4.46 at 1.74x",
            "DiT-XL/2, ImageNet 256x256",
            "tables 10 and 12, as the OnlineCache paper reprints them",
        ),
        Claim("latency", "12.4 s to 7.3 s", "SD3-Medium, GPU and steps not stated", "authors' README"),
    )
    calibrated: ClassVar[bool] = True
    sweep: ClassVar[tuple[str, ...]] = (
        "fastcache:rtol=0.05",
        "fastcache:rtol=0.1",
        "fastcache:rtol=0.2",
        "fastcache:rtol=0.4",
    )

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise PolicyError(f"fastcache: alpha={self.alpha} is not a rate. It must lie between 0 and 1, e.g. 0.05.")
        numbers = (self.rtol, self.total, self.span, self.longest - 1, self.warmup - 1)
        if not min(numbers) >= 0 or math.isnan(self.total):
            raise PolicyError(
                f"fastcache: rtol={self.rtol}, total={self.total}, span={self.span}, longest={self.longest}, "
                f"warmup={self.warmup}. rtol, total and span must be zero or more, longest and warmup at least 1."
            )
        if not 0 <= self.tokens <= 1 or (self.merge and not self.tokens):
            raise PolicyError(
                f"fastcache: tokens={self.tokens}, merge={self.merge}. tokens is a fraction from 0 to 1; "
                "merge needs it above 0, for example tokens=0.25."
            )
        choices = (("fit", self.fit, FITS), ("gate", self.gate, GATES), ("rung", self.rung, ("auto", *RUNGS)))
        for key, value, allowed in choices:
            if value not in allowed:
                raise PolicyError(f"fastcache has no {key} {value!r}.{closest(value, allowed)}")

    @property
    def profile_use(self) -> Literal["no", "may", "must"]:
        uses: dict[str, Literal["no", "may", "must"]] = {"online": "no", "auto": "may", "profile": "must"}
        return uses[self.fit]

    def with_profile(self) -> FastCache:
        return self if self.fit == "online" else replace(self, fit="profile")

    def compose(self, profile: Profile | None) -> Composition:
        budget = ErrorBudget(rtol=self.rtol, total=self.total)
        online = OnlineGate(self.alpha, budget, self.longest)
        if self.fit == "online" or (self.fit == "auto" and profile is None):
            published = self.gate == "published"
            return self._composed(PublishedGate(self.alpha, self.longest) if published else online, OnlineEstimator())
        schedule, gate, ladder = self._fitted(profile)
        if self.fit == "profile" or self.gate == "published":
            return self._composed(gate, ladder)
        return self._composed(
            FallbackGate(gate, online, schedule), FallbackEstimator(ladder, OnlineEstimator(), schedule)
        )

    def _composed(self, gate: StepGate, estimator: Estimator) -> Composition:
        corrector = MergedTokens(self.tokens) if self.merge else MotionTokens(self.tokens)
        return Composition(Chunks(self.span), gate, estimator, corrector if self.tokens else None)

    def _fitted(self, profile: Profile | None) -> tuple[StepSchedule, StepGate, Estimator]:
        if profile is None or not set(profile.numbers) >= NEEDED:
            raise CalibrationError("fastcache needs fitted maps and gates: run `tenuto calibrate fastcache`.")
        numbers = profile.numbers
        for key in ("span", "rung"):
            if getattr(self, key) not in (numbers[key], "auto"):
                raise CalibrationError(
                    f"The profile was fitted for fastcache:{key}={numbers[key]}, not {key}={getattr(self, key)}. "
                    f"Calibrate: tenuto calibrate fastcache:{key}={getattr(self, key)}."
                )
        if numbers["longest"] < self.longest:
            raise CalibrationError(
                f"The profile was fitted for skips of up to {numbers['longest']} steps, not longest={self.longest}. "
                f"Calibrate: tenuto calibrate fastcache:longest={self.longest}."
            )
        schedule = StepSchedule(tuple(numbers["timesteps"]))
        ladder = Ladder(schedule, numbers["bins"], unpacked(profile.tensors, numbers["cells"]))
        names = [name.split(".") for name in profile.tensors if name.startswith("basis.")]
        bases = {(int(span), int(i)): profile.tensors[f"basis.{span}.{i}"] for _, span, i in names}
        estimator = ProjectedLadder(ladder, bases) if bases else ladder
        return schedule, self._gate(schedule, numbers["gates"], numbers["levels"]), estimator

    def _gate(
        self, schedule: StepSchedule, gates: Sequence[Sequence[Sequence[Sequence[float]]]], levels: Sequence[float]
    ) -> StepGate:
        if self.gate == "published":
            return PublishedGate(self.alpha, self.longest)
        table = tuple(tuple(tuple((s, d, w) for s, d, w in gaps) for gaps in steps) for steps in gates)
        budget = ErrorBudget(rtol=self.rtol, total=self.total)
        return BudgetGate(self.alpha, level_for(self.alpha, levels), budget, self.longest, schedule, table)

    @property
    def budget(self) -> ErrorBudget | None:
        return ErrorBudget(rtol=self.rtol, total=self.total) if self.gate == "calibrated" else None

    def recorder(self) -> Recorder:
        if self.fit == "online":
            raise PolicyError("fastcache:fit=online needs no calibration: use it as it is, or leave fit out.")
        rehearsed = tuple(
            replace(self, rtol=rtol, total=float("inf"), gate="calibrated", tokens=0.0, merge=False)
            for rtol in REHEARSED
        )
        return LadderRecorder(
            Chunks(self.span), self.span, self.longest, rung=self.rung, rank=RANK, rehearsals=rehearsed
        )
