"""FastCache: a calibrated statistical gate, and a fitted linear map where the residual was merely repeated.

A span's residual is estimated by a linear map of what is known before computing it: the change of the span's input
since the last computed step, the slope of the residual between the last two computed steps, and that residual itself.
The maps are fitted once per model in closed form (reduced-rank ridge regression from streamed Gram matrices), one per
span, schedule bin and number of steps since the last computed one. The gate (``tenuto.gate``) tests, at false-reuse
rate ``alpha``, whether the map's error will stay within what is left of an error budget that every estimate spends
from and every computed step renews.

What it does not do (yet): no token reduction; one decision serves all samples of a batch (the worst sample decides).
The published gate compares the change with the state's own norm and passes every change below 100 %, and the published
maps are never fitted: neither is reproduced here.

Paper: FastCache, https://arxiv.org/abs/2505.20353 (statistical gate, section 3; linear approximation, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tenuto.budget import ErrorBudget
from tenuto.diffusion.policies.every_n import WholeStack
from tenuto.diffusion.policy import (
    Composition,
    Estimator,
    FeaturePolicy,
    Paper,
    Recorder,
    Scope,
    Span,
    Step,
    StepGate,
    Streams,
)
from tenuto.diffusion.trajectory import Past, Schedule, Trace, change_of, features, follow, pairs
from tenuto.errors import CalibrationError, PolicyError
from tenuto.gate import Gate, Verdict, fit_gate, fit_levels, level_for
from tenuto.ridge import Gram

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["BudgetGate", "Chunks", "FastCache", "InnovationMap", "MapRecorder", "false_reuse_rates"]

MOST_BINS, GRAM_BYTES = 50, 4 * 2**30  # one bin per step, fewer where the Gram matrices would outgrow memory
RANK = 32
SIDES = ("down", "up")

Maps = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
_Table = tuple[tuple[tuple[tuple[float, float], ...], ...], ...]
HOLD_OUT = 3  # every third generation
RIDGE = 1e-5
MOST_ROWS = 8192


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
    index: int
    hidden: torch.Tensor
    budget: ErrorBudget


@dataclass(frozen=True, slots=True)
class BudgetGate(StepGate):
    """Reuse while the calibrated bound on the map's error fits into what is left of the error budget.

    ``table[span][step][gap - 1]`` is ``(scale, dof)`` of the test (see ``tenuto.gate``).
    """

    alpha: float
    level: float
    rtol: float
    longest: int
    schedule: Schedule
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
        change = float(change_of(image, state.hidden).max())
        scale, dof = self.table[step.span.index][place][gap - 1]
        gate = Gate(scale=scale, dof=dof, alpha=self.alpha, level=self.level)
        verdict = gate.judge(change, state.budget.left)
        if verdict.reuse:
            spent = change * scale**0.5
            state = _GateState(state.index, state.hidden, state.budget.spend(spent))
        return verdict, state

    def settled(self, state: _GateState | None, step: Step, verdict: Verdict, computed: bool) -> _GateState | None:
        image = step.hidden[0]
        if not computed or image is None:
            return state
        return _GateState(step.index, image, ErrorBudget(rtol=self.rtol))


@dataclass(frozen=True, slots=True)
class InnovationMap(Estimator):
    """``r = r_b + [h - h_b, gap * slope, r_b, 1] A B``, b the last computed step.

    ``maps[(span, stream)]`` is ``(A [bins, gaps, 3 * channels + 1, rank], B [bins, gaps, rank, channels])``.
    """

    schedule: Schedule
    maps: Maps = field(hash=False)

    def init(self) -> Past | None:
        return None

    def ready(self, state: Past | None, step: Step) -> bool:
        return state is not None

    def estimate(self, state: Past, step: Step) -> Streams:
        return tuple(
            None if h is None or r is None else self._stream(state, step, stream, h)
            for stream, (h, r) in enumerate(zip(step.hidden, state.residual, strict=True))
        )

    def _weights(self, step: Step, stream: int, gap: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        down, up = self.maps[step.span.index, stream]
        place = self.schedule.place(step.timestep, None)
        cell = place * len(down) // len(self.schedule.timesteps), gap - 1
        return down[cell].to(like.device, like.dtype), up[cell].to(like.device, like.dtype)

    def _stream(self, past: Past, step: Step, stream: int, hidden: torch.Tensor) -> torch.Tensor:
        gap, width = step.index - past.index, hidden.shape[-1]
        down, up = self._weights(step, stream, gap, hidden)
        before, residual, slope = past.hidden[stream], past.residual[stream], past.slope[stream]
        if before is None or residual is None:
            raise CalibrationError("a stream appeared that was not there at the last computed step")
        code = torch.addmm(down[-1], (hidden - before).reshape(-1, width), down[:width])
        code.addmm_(residual.reshape(-1, width), down[2 * width : 3 * width])
        if slope is not None:
            code.addmm_(slope.reshape(-1, width), down[width : 2 * width], alpha=gap)
        return torch.addmm(residual.reshape(-1, width), code, up).view_as(residual)

    def observe(self, state: Past | None, step: Step, residual: Streams) -> Past:
        return follow(state, step.index, step.hidden, residual)

    def flops(self, step: Step) -> float:
        ranks = {stream: up.shape[-2] for (span, stream), (_, up) in self.maps.items() if span == step.span.index}
        return sum(8.0 * h.numel() * ranks.get(stream, 0) for stream, h in enumerate(step.hidden) if h is not None)

    def nbytes(self) -> int:
        return sum(t.nelement() * t.element_size() for pair in self.maps.values() for t in pair)


class MapRecorder(Recorder):
    """Fits maps and gates. Every third generation is held out: gates are fitted on its errors, maps are not.

    Memory: one generation's hidden states and residuals, and those of the held-out generations.
    """

    def __init__(self, span: int, longest: int) -> None:
        self.scope: Scope = Chunks(span)
        self.span, self.longest = span, longest
        self.timesteps: dict[int, float] = {}
        self.grams: dict[tuple[int, int, int, int], Gram] = {}
        self.trace: Trace = {}
        self.held_out: list[Trace] = []
        self.generation = -1
        self.bins = 0

    def begin(self, generation: int) -> None:
        self._digest()
        self.generation = generation

    def observe(self, step: Step, residual: Streams) -> None:
        self.timesteps[step.index] = step.timestep
        self.trace.setdefault((step.branch, step.span.index), []).append((step.hidden, residual))

    def _digest(self) -> None:
        """Stream the finished generation into the Gram matrices, or hold it out."""
        if self.trace and self.generation % HOLD_OUT == HOLD_OUT - 1:
            self.held_out.append(self.trace)
        elif self.trace:
            self.bins = self.bins or self._affordable_bins()
            for (_, span), steps in self.trace.items():
                for index, gap, past in pairs(steps, self.longest):
                    self._add(span, index * self.bins // len(steps), gap, past, steps[index])
        self.trace = {}

    def _affordable_bins(self) -> int:
        """As many bins as there are steps, unless the Gram matrices would outgrow ``GRAM_BYTES``."""
        first = {span: steps[0][0] for (_, span), steps in self.trace.items()}
        columns = [3 * h.shape[-1] + 1 for streams in first.values() for h in streams if h is not None]
        cost = 8 * self.longest * sum(n * (n + n // 3) for n in columns)
        if cost > GRAM_BYTES:
            raise CalibrationError(
                f"Fitting fastcache to this model takes {cost / 2**30:.1f} GiB of Gram matrices, more than "
                f"{GRAM_BYTES / 2**30:.0f}. Give a smaller longest than {self.longest}, or use a policy without maps."
            )
        return max(min(MOST_BINS, len(self.timesteps), GRAM_BYTES // cost), 1)

    def _add(self, span: int, place: int, gap: int, past: Past, now: tuple[Streams, Streams]) -> None:
        for stream, (hidden, residual) in enumerate(zip(*now, strict=True)):
            before = past.residual[stream]
            if hidden is None or residual is None or before is None:
                continue
            x, y = features(past, gap, stream, hidden), (residual - before).reshape(-1, hidden.shape[-1])
            every = max(len(x) // MOST_ROWS, 1)
            gram = self.grams.setdefault((span, stream, place, gap), Gram(x.shape[1], y.shape[1]))
            gram.add(x[::every], y[::every])

    def fit(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        self._digest()
        if not self.held_out:
            raise CalibrationError(
                f"fastcache holds out every {HOLD_OUT}rd generation to fit its gate: give at least {HOLD_OUT} seeds."
            )
        maps = self._solve()
        schedule = Schedule(tuple(self.timesteps[i] for i in sorted(self.timesteps)))
        estimator = InnovationMap(schedule, maps)
        halves = [error_ratios(estimator, self.held_out[half::2], self.longest) for half in (0, 1)]
        cells = {key: [*halves[0].get(key, ()), *halves[1].get(key, ())] for half in halves for key in half}
        gates = {key: fit_gate(ratios) for key, ratios in cells.items()}
        gaps, unknown = range(1, self.longest + 1), (1e9, 1.0)  # a pair never seen is never reused
        table = [
            [[gates.get((span, step, gap), unknown) for gap in gaps] for step in range(len(schedule.timesteps))]
            for span in range(1 + max(span for span, _ in maps))
        ]
        numbers = {"span": self.span, "longest": self.longest, "timesteps": schedule.timesteps, "gates": table}
        numbers["levels"] = fit_levels(halves)
        tensors = {f"{side}.{s}.{n}": t for (s, n), pair in maps.items() for side, t in zip(SIDES, pair, strict=True)}
        return tensors, numbers

    def _solve(self) -> Maps:
        maps: Maps = {}
        for (span, stream, place, gap), gram in self.grams.items():
            solved = [half.to(torch.float16) for half in gram.solve_low_rank(RIDGE, RANK)]
            empty = [torch.zeros(self.bins, self.longest, *half.shape, dtype=half.dtype) for half in solved]
            for target, half in zip(maps.setdefault((span, stream), (empty[0], empty[1])), solved, strict=True):
                target[place, gap - 1] = half
        return maps


def error_ratios(
    estimator: InnovationMap, traces: Sequence[Trace], longest: int
) -> dict[tuple[int, int, int], list[float]]:
    """``(span, step, gap)`` -> ratios of squared relative error to squared relative input change, one per sample."""
    ratios: dict[tuple[int, int, int], list[float]] = {}
    for trace in traces:
        for (branch, span), steps in trace.items():
            for index, gap, past in pairs(steps, longest):
                hidden, residual = steps[index]
                image, true, before = hidden[0], residual[0], past.hidden[0]
                if image is None or true is None or before is None:
                    continue
                timestep = estimator.schedule.timesteps[index]
                place = Span(span, 0, 0)
                step = Step(index, None, timestep, branch, place, True, hidden, None, lambda: torch.empty(0))
                guess = estimator.estimate(past, step)[0]
                if guess is not None:
                    error = change_of(image + guess, image + true)
                    ratio = (error / change_of(image, before).clamp_min(1e-6)) ** 2
                    key = (span, index, gap)
                    ratios.setdefault(key, []).extend(ratio.tolist())
    return ratios


def false_reuse_rates(profile: Profile, traces: Sequence[Trace], alpha: float) -> list[float]:
    """Per trace, how often an estimate's error exceeded the gate's ``1 - alpha`` bound; it should be ``alpha``.

    Every pair of a step and a step before it counts, whether or not a policy would have reused it. ``traces`` come
    from a :class:`MapRecorder` watching generations that the profile was not fitted on.
    """
    schedule, table, maps = _unpacked(profile)
    estimator, longest = InnovationMap(schedule, maps), len(table[0][0])
    level = level_for(alpha, profile.numbers["levels"])
    rates = []
    for trace in traces:
        missed = total = 0
        for (span, step, gap), ratios in error_ratios(estimator, [trace], longest).items():
            scale, dof = table[span][step][gap - 1]
            bound = Gate(scale=scale, dof=dof, alpha=alpha, level=level).bound(1.0) ** 2
            missed += sum(ratio > bound for ratio in ratios)
            total += len(ratios)
        rates.append(missed / total)
    return rates


def _unpacked(profile: Profile) -> tuple[Schedule, _Table, Maps]:
    """What a profile holds: the schedule, the gates and the maps."""
    schedule = Schedule(tuple(profile.numbers["timesteps"]))
    table = tuple(tuple(tuple((s, d) for s, d in gaps) for gaps in steps) for steps in profile.numbers["gates"])
    keys = {tuple(map(int, name.split(".")[1:])) for name in profile.tensors}
    maps = {(s, n): (profile.tensors[f"down.{s}.{n}"], profile.tensors[f"up.{s}.{n}"]) for s, n in keys}
    return schedule, table, maps


@dataclass(frozen=True, slots=True, kw_only=True)
class FastCache(FeaturePolicy):
    """Estimate spans by fitted maps while a calibrated test allows it.

    Attributes:
        alpha: accepted false-reuse rate of the test, in (0, 1): larger reuses more.
        rtol: relative error that estimates may add up to between two computed steps; larger reuses more, 0 never.
        span: blocks per decision; 0 takes each block list as one.
        longest: most denoising steps since the last computed one, at least 1.
        warmup: steps at the start that always compute, at least 1.
    """

    alpha: float = 0.05
    rtol: float = 0.1
    span: int = 0
    longest: int = 6
    warmup: int = 2

    paper: ClassVar[Paper] = Paper(
        "FastCache: Fast Caching for Diffusion Transformer Through Learnable Linear Approximation",
        "Liu, Zhang, Li, Yu, Lengerich, Wu",
        2025,
        "https://arxiv.org/abs/2505.20353",
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
        if self.rtol < 0 or self.span < 0 or self.longest < 1 or self.warmup < 1:
            raise PolicyError(
                f"fastcache: rtol={self.rtol}, span={self.span}, longest={self.longest}, warmup={self.warmup}. "
                "rtol and span must be zero or more, longest and warmup at least 1."
            )

    def compose(self, profile: Profile | None) -> Composition:
        if profile is None or not {"span", "longest", "timesteps", "gates", "levels"} <= set(profile.numbers):
            raise CalibrationError("fastcache needs fitted maps and gates: run `tenuto calibrate fastcache`.")
        numbers = profile.numbers
        if numbers["span"] != self.span:
            raise CalibrationError(
                f"The profile was fitted for fastcache:span={numbers['span']}, not span={self.span}. "
                f"Calibrate: tenuto calibrate fastcache:span={self.span}."
            )
        if numbers["longest"] < self.longest:
            raise CalibrationError(
                f"The profile was fitted for skips of up to {numbers['longest']} steps, not longest={self.longest}. "
                f"Calibrate: tenuto calibrate fastcache:longest={self.longest}."
            )
        schedule, table, maps = _unpacked(profile)
        level = level_for(self.alpha, numbers["levels"])
        gate = BudgetGate(self.alpha, level, self.rtol, self.longest, schedule, table)
        return Composition(Chunks(self.span), gate, InnovationMap(schedule, maps))

    def recorder(self) -> Recorder:
        return MapRecorder(self.span, self.longest)
