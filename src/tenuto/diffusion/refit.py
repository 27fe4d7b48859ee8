"""Fit a ladder of surrogates and its gate: first on uncached generations, then again on cached ones.

The open-loop fit pretends, for every step and gap, that the steps ``gap`` apart before it had been computed. A cached
run looks different: its inputs have drifted, and computed steps are not evenly spaced. The closed-loop refit therefore
adds pairs from rehearsals, cached generations in shadow mode, where the state is what it is in use and the truth is
known.

Every third generation is held out: rungs are chosen and gates are fitted on its errors, maps are not. Of a model with
more than ``WIDE`` channels the first generation shows where its streams move, and everything after happens there
(``tenuto.diffusion.subspace``), on ``SEEN_ROWS`` tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch

from tenuto.diffusion.gate import fit_gate, fit_levels
from tenuto.diffusion.ladder import RUNGS, Cell, Ladder, Weights, flops_per_token, packed, rung_of, solve
from tenuto.diffusion.policy import Estimator, FeaturePolicy, Recorder, Scope, Span, Step, Streams
from tenuto.diffusion.ridge import Gram
from tenuto.diffusion.subspace import WIDE, WIDTH, Inside, RangeFinder, SeenSteps, narrow, narrowed, see
from tenuto.diffusion.trajectory import Past, StepSchedule, Trace, change_of, features, pairs
from tenuto.errors import CalibrationError

__all__ = ["LadderRecorder", "Sample", "error_ratios", "samples"]

MOST_BINS, GRAM_BYTES = 50, 4 * 2**30  # one bin per step, fewer where the Gram matrices would outgrow memory
SEEN_GRAM_BYTES, SEEN_ROWS = 2**30, 1024
HOLD_OUT = 3  # every third generation
RIDGE = 1e-5
MOST_ROWS = 8192
CLOSED_WEIGHT = 8.0
SLACK = 1.1
UNKNOWN = (1e9, 1.0, 1e9)  # a pair never seen is never reused


class Sample(NamedTuple):
    """One estimate that could be made, and the truth."""

    step: Step
    past: Past
    residual: Streams


def samples(trace: Trace, schedule: StepSchedule, longest: int) -> Iterator[Sample]:
    """Every step of an uncached generation, estimated from every gap up to ``longest``."""
    for (branch, span), steps in trace.items():
        for index, _, past in pairs(steps, longest):
            hidden, residual = steps[index]
            place = Span(span, 0, 0)
            step = Step(index, None, schedule.timesteps[index], branch, place, True, hidden, None, _nothing)
            yield Sample(step, past, residual)


def _some(stream: torch.Tensor | None) -> torch.Tensor | None:
    """At most ``SEEN_ROWS`` tokens of a batch ``[batch, tokens, channels]``, evenly spaced, in single precision."""
    if stream is None:
        return None
    tokens = min(stream.shape[1], max(SEEN_ROWS // len(stream), 1))
    chosen = torch.linspace(0, stream.shape[1] - 1, tokens, device=stream.device).long()
    return stream[:, chosen].float().cpu()


def _gram_bytes(widths: list[int], longest: int) -> int:
    """Bytes of the Gram matrices of one bin of the schedule, for streams of these widths."""
    return 8 * longest * sum((3 * w + 1) * (4 * w + 1) for w in widths)


def _nothing() -> torch.Tensor:
    raise NotImplementedError("a recorded step has no modulated input")


def error_ratios(estimator: Estimator, given: Iterable[Sample]) -> dict[tuple[int, int, int], list[float]]:
    """``(span, step, gap)`` -> squared relative error over squared relative input change, one per picture."""
    ratios: dict[tuple[int, int, int], list[float]] = {}
    for step, past, residual in given:
        image, true, before = step.hidden[0], residual[0], past.hidden[0]
        guess = estimator.estimate(past, step)[0]
        if image is None or true is None or before is None or guess is None:
            continue
        ratio = (change_of(image + guess, image + true) / change_of(image, before).clamp_min(1e-6)) ** 2
        ratios.setdefault((step.span.index, step.index, step.index - past.index), []).extend(ratio.tolist())
    return ratios


@dataclass(slots=True)
class _Error:
    """Summed squared relative errors of one rung in one cell."""

    total: float = 0.0
    count: int = 0

    def add(self, error: torch.Tensor) -> None:
        self.total += float((error.double() ** 2).sum())
        self.count += len(error)

    @property
    def rms(self) -> float:
        return (self.total / self.count) ** 0.5 if self.count else float("inf")


class LadderRecorder(Recorder):
    """Fits rungs and gates.

    Args:
        scope, span, longest: what is skipped together, its size as the profile names it, and the most steps since the
            last computed one.
        rung: one of ``RUNGS`` for every cell, or "auto" to choose per cell.
        rank: of the rung "low_rank".
        rehearsals: policies for the closed-loop refit.
    """

    least: ClassVar[int] = 2 * HOLD_OUT

    def __init__(
        self,
        scope: Scope,
        span: int,
        longest: int,
        *,
        rung: str,
        rank: int,
        rehearsals: tuple[FeaturePolicy, ...],
    ) -> None:
        self.scope, self.span, self.longest = scope, span, longest
        self.rung, self.rank = rung, rank
        self.timesteps: dict[int, float] = {}
        self.grams: dict[Cell, Gram] = {}
        self.trace: Trace = {}
        self.closed: list[Sample] = []
        self.held_open: list[Callable[[], Iterable[Sample]]] = []
        self.held_closed: list[list[Sample]] = []
        self.generation = -1
        self.bins = 0
        self.bases: dict[tuple[int, int], torch.Tensor] = {}
        self._finders: dict[tuple[int, int], RangeFinder] = {}
        self._before: dict[tuple[str, int], tuple[Streams, Streams]] = {}
        self._rehearsals = rehearsals

    def begin(self, generation: int) -> None:
        self._digest()
        self.generation = generation

    def observe(self, step: Step, residual: Streams) -> None:
        self.timesteps[step.index] = step.timestep
        if not self.bases and any(s is not None and s.shape[-1] > WIDE for s in step.hidden):
            return self._survey(step, residual)
        if self.bases:
            self.trace.setdefault((step.branch, step.span.index), []).append(
                (self._few(step.span.index, step.hidden), self._few(step.span.index, residual))
            )
            return None
        self.trace.setdefault((step.branch, step.span.index), []).append((step.hidden, residual))

    def _survey(self, step: Step, residual: Streams) -> None:
        """Where a wide model's streams are, and where they move."""
        place, now = (step.branch, step.span.index), (step.hidden, residual)
        for kind, (streams, before) in enumerate(zip(now, self._before.get(place, now), strict=True)):
            for stream, (s, old) in enumerate(zip(streams, before, strict=True)):
                if s is None or old is None:
                    continue
                key = (step.span.index, stream)
                finder = self._finders.setdefault(key, RangeFinder(s.shape[-1], s.device))
                finder.add(s - old)
                if kind:
                    finder.add(s)
        self._before[place] = now

    def _few(self, span: int, streams: Streams) -> Streams:
        """Some tokens of streams, as they are seen, on the processor."""
        return see(self.bases, span, tuple(map(_some, streams)))

    def rehearsals(self) -> tuple[FeaturePolicy, ...]:
        return self._rehearsals

    def estimated(self, step: Step, state: Past | SeenSteps, residual: Streams) -> None:
        if isinstance(state, Past):
            self.closed.append(Sample(step, state, residual))
            return
        span, past = step.span.index, state.past
        few = (tuple(map(_some, streams)) for streams in (past.hidden, past.residual, past.slope))
        small = Step(step.index, step.total, step.timestep, step.branch, step.span, True, (), None, _nothing)
        small = replace(small, hidden=self._few(span, step.hidden))
        self.closed.append(Sample(small, Past(past.index, *few), self._few(span, residual)))

    @property
    def schedule(self) -> StepSchedule:
        """The denoising steps seen."""
        return StepSchedule(tuple(self.timesteps[i] for i in sorted(self.timesteps)))

    def _digest(self) -> None:
        """Stream the finished generation into the Gram matrices, or hold it out."""
        if self._finders:
            self.bases = {key: finder.basis() for key, finder in self._finders.items()}
            self._finders, self._before = {}, {}
        if not self.trace and not self.closed:
            return
        self.bins = self.bins or self._affordable_bins()
        held = self.generation % HOLD_OUT == HOLD_OUT - 1
        if self.trace:
            open_loop = partial(samples, self.trace, self.schedule, self.longest)
            if held:
                self.held_open.append(open_loop)
            else:
                self._add(open_loop(), 1.0)
        elif held:
            self.held_closed.append(self.closed)
        else:
            self._add(self.closed, CLOSED_WEIGHT)
        self.trace, self.closed = {}, []

    @property
    def _held_out(self) -> Iterator[Sample]:
        return chain(chain.from_iterable(held() for held in self.held_open), *self.held_closed)

    def memory(self, channels: int, streams: int, steps: int) -> int:
        wide = channels > WIDE
        per_bin = _gram_bytes([WIDTH if wide else channels] * streams, self.longest)
        most = SEEN_GRAM_BYTES if wide else GRAM_BYTES
        return per_bin * max(min(MOST_BINS, steps, most // max(per_bin, 1)), 1)

    def _affordable_bins(self) -> int:
        """As many bins as there are steps, unless the Gram matrices would outgrow ``GRAM_BYTES``."""
        first = {span: steps[0][0] for (_, span), steps in self.trace.items()}
        widths = [WIDTH if self.bases else h.shape[-1] for streams in first.values() for h in streams if h is not None]
        cost, most = _gram_bytes(widths, self.longest), SEEN_GRAM_BYTES if self.bases else GRAM_BYTES
        if cost > most:
            raise CalibrationError(
                f"Fitting the maps to this model takes {cost / 2**30:.1f} GiB of Gram matrices, more than "
                f"{most / 2**30:.0f}. Give a smaller longest than {self.longest}, or larger spans."
            )
        return max(min(MOST_BINS, len(self.timesteps), most // cost), 1)

    def _add(self, given: Iterable[Sample], weight: float) -> None:
        for step, past, residual in given:
            gap = step.index - past.index
            place = step.index * self.bins // len(self.timesteps)
            if self.bases:
                step, past, residual = replace(step, hidden=narrow(step.hidden)), narrowed(past), narrow(residual)
            for stream, (hidden, true) in enumerate(zip(step.hidden, residual, strict=True)):
                before = past.residual[stream]
                if hidden is None or true is None or before is None:
                    continue
                x, y = features(past, gap, stream, hidden), (true - before).reshape(-1, hidden.shape[-1])
                every = max(len(x) // MOST_ROWS, 1)
                gram = self.grams.setdefault((step.span.index, stream, place, gap), Gram(x.shape[1], y.shape[1]))
                gram.add(x[::every], y[::every], weight)

    def fit(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        self._digest()
        if len(self.held_open) < 2:  # two halves, to cross-fit the levels
            raise CalibrationError(f"Every {HOLD_OUT}rd generation is held out: give at least {self.least} seeds.")
        cells, summary = self._choose()
        tensors, index = packed(cells)
        tensors |= {f"basis.{span}.{stream}": basis for (span, stream), basis in self.bases.items()}
        numbers = {
            "span": self.span,
            "longest": self.longest,
            "rung": self.rung,
            "timesteps": self.schedule.timesteps,
            "bins": self.bins,
            "cells": index,
            "ladder": summary,
            **self._gates(self._estimator(cells)),
        }
        return tensors, numbers

    def _choose(self) -> tuple[dict[Cell, Weights], list[dict[str, Any]]]:
        """The chosen rung of every cell, and what each rung would do if it stood everywhere."""
        allowed = RUNGS if self.rung == "auto" else (self.rung,)
        ladders = {
            rung: {cell: solve(rung, gram, RIDGE, self.rank) for cell, gram in self.grams.items()} for rung in allowed
        }
        errors = {rung: self._errors(self._estimator(cells)) for rung, cells in ladders.items()}
        chosen: dict[Cell, Weights] = {}
        for cell in self.grams:
            best = min(errors[rung].get(cell, _Error()).rms for rung in allowed)
            good = (rung for rung in allowed if errors[rung].get(cell, _Error()).rms <= SLACK * best)
            chosen[cell] = ladders[next(good, allowed[-1])][cell]
        summary = []
        for rung, cells in ladders.items():
            whole = [error.rms for error in errors[rung].values()]
            summary.append(
                {
                    "rung": rung,
                    "cells": sum(rung_of(weights) == rung for weights in chosen.values()),
                    "rms_error": sum(whole) / len(whole),
                    "bytes": Ladder(self.schedule, self.bins, cells).nbytes(),
                    "flops_per_token": max(map(flops_per_token, cells.values())),
                }
            )
        return chosen, summary

    def _estimator(self, cells: dict[Cell, Weights]) -> Estimator:
        ladder = Ladder(self.schedule, self.bins, cells)
        return Inside(ladder) if self.bases else ladder

    def _errors(self, estimator: Estimator) -> dict[Cell, _Error]:
        """Held-out relative errors of the residual, by cell."""
        found: dict[Cell, _Error] = {}
        for step, past, residual in self._held_out:
            place = step.index * self.bins // len(self.timesteps)
            guesses = zip(step.hidden, estimator.estimate(past, step), residual, strict=True)
            for stream, (hidden, guess, true) in enumerate(guesses):
                if hidden is not None and guess is not None and true is not None:
                    error = found.setdefault((step.span.index, stream, place, step.index - past.index), _Error())
                    error.add(change_of(hidden + guess, hidden + true))
        return found

    def _gates(self, estimator: Estimator) -> dict[str, Any]:
        """``(scale, dof, worst)`` per span, step and gap, and the cross-fitted levels
        (:mod:`tenuto.diffusion.gate`): of cached runs where there were rehearsals, else of uncached ones."""
        found, judged = [], []
        for half in (0, 1):
            open_loop = chain.from_iterable(held() for held in self.held_open[half::2])
            ratios = error_ratios(estimator, open_loop)
            closed = error_ratios(estimator, chain.from_iterable(self.held_closed[half::2]))
            judged.append(closed if self.held_closed else ratios)
            found.append({key: [*ratios.get(key, ()), *closed.get(key, ())] for key in {*ratios, *closed}})
        cells = {key: [*found[0].get(key, ()), *found[1].get(key, ())] for key in {*found[0], *found[1]}}
        gates = {key: (*fit_gate(ratios), max(ratios)) for key, ratios in cells.items() if len(ratios) > 1}
        table = [
            [[gates.get((span, step, gap), UNKNOWN) for gap in range(1, self.longest + 1)] for step in self.timesteps]
            for span in range(1 + max(span for span, *_ in self.grams))
        ]
        return {"gates": table, "levels": fit_levels(found, judged)}
