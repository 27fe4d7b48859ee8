"""FastCache: a calibrated statistical gate, and a fitted linear map where the residual was merely repeated.

A span's residual is estimated by a linear map of what is known before computing it: the change of the span's input
since the last computed step, the slope of the residual between the last two computed steps, and that residual itself.
The maps are fitted once per model in closed form (ridge regression from streamed Gram matrices), one per span,
schedule bin and number of steps since the last computed one. The gate (``tenuto.gate``) tests, at false-reuse rate
``alpha``, whether the map's error will stay within what is left of an error budget that every estimate spends from and
every computed step renews.

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
from tenuto.errors import CalibrationError, PolicyError
from tenuto.gate import Gate, Verdict, fit_gate
from tenuto.ridge import Gram

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["BudgetGate", "Chunks", "FastCache", "InnovationMap", "MapRecorder", "Past"]

BINS = 10
RIDGE = 1e-5
MOST_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Chunks(Scope):
    """Spans of ``size`` blocks; 0 takes the whole list."""

    size: int

    def spans(self, lists: Sequence[int]) -> tuple[Span, ...]:
        spans: list[Span] = []
        start = 0
        for length in lists:
            end = start + length
            for first in range(start, end, self.size or length):
                spans.append(Span(len(spans), first, min(first + (self.size or length), end) - 1))
            start = end
        return tuple(spans)


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


def change_of(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Relative L2 change ``[batch]`` of hidden states ``[batch, tokens, channels]``."""
    return _norm(hidden - reference) / _norm(reference).clamp_min(1e-12)


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float32)
    return norm


@dataclass(frozen=True, slots=True)
class _Schedule:
    """The denoising steps a profile was fitted on: ``timesteps`` in order, divided evenly into bins."""

    timesteps: tuple[float, ...]

    def bin(self, timestep: float, total: int | None) -> int:
        """The bin of a timestep.

        Raises:
            CalibrationError: the generation has another number of steps.
        """
        steps = len(self.timesteps)
        if total is not None and total != steps:
            raise CalibrationError(
                f"The fastcache profile was fitted for {steps} denoising steps; this generation has {total}. "
                f"Calibrate for it: tenuto calibrate fastcache --steps {total}."
            )
        nearest = min(range(steps), key=lambda i: abs(self.timesteps[i] - timestep))
        return nearest * BINS // steps


@dataclass(frozen=True, slots=True)
class _GateState:
    index: int
    hidden: torch.Tensor
    budget: ErrorBudget


@dataclass(frozen=True, slots=True)
class BudgetGate(StepGate):
    """Reuse while the calibrated bound on the map's error fits into what is left of the error budget.

    ``table[span][bin][gap - 1]`` is ``(scale, dof)`` of the test (see ``tenuto.gate``).
    """

    alpha: float
    rtol: float
    longest: int
    schedule: _Schedule
    table: tuple[tuple[tuple[tuple[float, float], ...], ...], ...]
    shared: ClassVar[bool] = False

    def init(self) -> _GateState | None:
        return None

    def judge(self, state: _GateState | None, step: Step) -> tuple[Verdict, _GateState | None]:
        place = self.schedule.bin(step.timestep, step.total)
        image = step.hidden[0]
        if state is None or image is None:
            return Verdict(reuse=False), state
        gap = step.index - state.index
        if gap > self.longest:
            return Verdict(reuse=False), state
        change = float(change_of(image, state.hidden).max())
        scale, dof = self.table[step.span.index][place][gap - 1]
        gate = Gate(scale=scale, dof=dof, alpha=self.alpha)
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
    """``r = r_b + (h - h_b) A + gap * slope B + r_b C + c`` with A, B, C ``[channels, channels]``, b the last computed
    step.

    ``maps[(span, stream)]`` is ``[bins, gaps, 3 * channels + 1, channels]``: A, B, C and c stacked.
    """

    schedule: _Schedule
    maps: dict[tuple[int, int], torch.Tensor] = field(hash=False)
    ready_maps: dict[Any, torch.Tensor] = field(default_factory=dict, hash=False, compare=False)

    def init(self) -> Past | None:
        return None

    def ready(self, state: Past | None, step: Step) -> bool:
        return state is not None

    def estimate(self, state: Past, step: Step) -> Streams:
        return tuple(
            None if h is None or r is None else self._stream(state, step, stream, h)
            for stream, (h, r) in enumerate(zip(step.hidden, state.residual, strict=True))
        )

    def _stream(self, past: Past, step: Step, stream: int, hidden: torch.Tensor) -> torch.Tensor:
        gap, width = step.index - past.index, hidden.shape[-1]
        key = (step.span.index, stream, self.schedule.bin(step.timestep, None), gap - 1, hidden.device, hidden.dtype)
        if key not in self.ready_maps:
            self.ready_maps[key] = self.maps[key[:2]][key[2], key[3]].to(hidden.device, hidden.dtype)
        weights = self.ready_maps[key]
        before, residual, slope = past.hidden[stream], past.residual[stream], past.slope[stream]
        if before is None or residual is None:
            raise CalibrationError("a stream appeared that was not there at the last computed step")
        result = torch.addmm(weights[-1], (hidden - before).reshape(-1, width), weights[:width])
        result.addmm_(residual.reshape(-1, width), weights[2 * width : 3 * width])
        if slope is not None:
            result.addmm_(slope.reshape(-1, width), weights[width : 2 * width], alpha=gap)
        return residual + result.view_as(residual)

    def observe(self, state: Past | None, step: Step, residual: Streams) -> Past:
        return follow(state, step.index, step.hidden, residual)

    def flops(self, step: Step) -> float:
        return sum(6.0 * h.numel() * h.shape[-1] for h in step.hidden if h is not None)

    def nbytes(self) -> int:
        return sum(tensor.nelement() * tensor.element_size() for tensor in self.maps.values())


def features(past: Past, gap: int, stream: int, hidden: torch.Tensor) -> torch.Tensor:
    """What the map sees, ``[rows, 3 * channels + 1]``: the reference form of ``InnovationMap``."""
    before, residual, slope = past.hidden[stream], past.residual[stream], past.slope[stream]
    if before is None or residual is None or slope is None:
        raise CalibrationError("a stream is missing from the past")
    width = hidden.shape[-1]
    columns = [(hidden - before), slope * gap, residual, torch.ones_like(hidden[..., :1])]
    return torch.cat([column.reshape(-1, column.shape[-1]) for column in columns], 1).view(-1, 3 * width + 1)


Trace = dict[tuple[str, int], list[tuple[Streams, Streams]]]


class MapRecorder(Recorder):
    """Fits maps and gates. Every fourth generation is held out: gates are fitted on its errors, maps are not.

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

    def begin(self, generation: int) -> None:
        self._digest()
        self.generation = generation

    def observe(self, step: Step, residual: Streams) -> None:
        self.timesteps[step.index] = step.timestep
        self.trace.setdefault((step.branch, step.span.index), []).append((step.hidden, residual))

    def _digest(self) -> None:
        """Stream the finished generation into the Gram matrices, or hold it out."""
        if self.trace and self.generation % 4 == 3:
            self.held_out.append(self.trace)
        elif self.trace:
            for (_, span), steps in self.trace.items():
                for index, gap, past in pairs(steps, self.longest):
                    self._add(span, index * BINS // len(steps), gap, past, steps[index])
        self.trace = {}

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
                "fastcache holds out every fourth generation to fit its gate: give at least 4 seeds."
            )
        maps: dict[tuple[int, int], torch.Tensor] = {}
        for (span, stream, place, gap), gram in self.grams.items():
            solved = gram.solve(RIDGE).to(torch.float16)
            empty = torch.zeros(BINS, self.longest, *solved.shape, dtype=solved.dtype)
            maps.setdefault((span, stream), empty)[place, gap - 1] = solved
        schedule = _Schedule(tuple(self.timesteps[i] for i in sorted(self.timesteps)))
        spans = 1 + max(span for span, _ in maps)
        ratios = error_ratios(InnovationMap(schedule, maps), self.held_out, self.longest)
        table = [
            [[fit_gate(ratios.get((s, b, g), [1.0, 1.0])) for g in range(1, self.longest + 1)] for b in range(BINS)]
            for s in range(spans)
        ]
        numbers = {"span": self.span, "longest": self.longest, "timesteps": schedule.timesteps, "gates": table}
        return {f"map.{span}.{stream}": tensor for (span, stream), tensor in maps.items()}, numbers


def pairs(steps: list[tuple[Streams, Streams]], longest: int) -> list[tuple[int, int, Past]]:
    """``(index, gap, past)`` for every step and gap: as if steps had been computed every ``gap`` steps before."""
    found = []
    for index in range(1, len(steps)):
        for gap in range(1, min(longest, index) + 1):
            last = index - gap
            older = max(last - gap, 0)
            past = follow(None, older, *steps[older]) if older < last else None
            found.append((index, gap, follow(past, last, *steps[last])))
    return found


def error_ratios(
    estimator: InnovationMap, traces: Sequence[Trace], longest: int
) -> dict[tuple[int, int, int], list[float]]:
    """``(span, bin, gap)`` -> ratios of squared relative error to squared relative input change, one per sample."""
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
                    key = (span, index * BINS // len(steps), gap)
                    ratios.setdefault(key, []).extend(ratio.tolist())
    return ratios


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
        if profile is None or "gates" not in profile.numbers:
            raise CalibrationError("fastcache needs fitted maps and gates: run `tenuto calibrate fastcache`.")
        numbers = profile.numbers
        if numbers["span"] != self.span:
            raise CalibrationError(
                f"The profile was fitted for fastcache:span={numbers['span']}, not span={self.span}. "
                f"Calibrate: tenuto calibrate fastcache:span={self.span}."
            )
        schedule = _Schedule(tuple(numbers["timesteps"]))
        table = tuple(tuple(tuple((s, d) for s, d in gaps) for gaps in bins) for bins in numbers["gates"])
        maps = {
            (int(span), int(stream)): tensor
            for name, tensor in profile.tensors.items()
            for _, span, stream in [name.split(".")]
        }
        gate = BudgetGate(self.alpha, self.rtol, min(self.longest, numbers["longest"]), schedule, table)
        return Composition(Chunks(self.span), gate, InnovationMap(schedule, maps))

    def recorder(self) -> Recorder:
        return MapRecorder(self.span, self.longest)
