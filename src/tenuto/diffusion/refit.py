"""Fit a ladder of surrogates and its gate: first on uncached generations, then again on cached ones.

The open-loop fit pretends, for every step and gap, that the steps ``gap`` apart before it had been computed. A cached
run looks different: its inputs have drifted, and computed steps are not evenly spaced. The closed-loop refit therefore
adds pairs from rehearsals, cached generations in shadow mode, where the state is what it is in use and the truth is
known.

Every third generation is held out: rungs are chosen and gates are fitted on its errors, maps are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch

from tenuto.diffusion.gate import fit_gate, fit_levels
from tenuto.diffusion.ladder import RUNGS, Cell, Ladder, Weights, flops_per_token, packed, rung_of, solve
from tenuto.diffusion.policy import FeaturePolicy, Recorder, Scope, Span, Step, Streams
from tenuto.diffusion.ridge import Gram
from tenuto.diffusion.trajectory import Past, Schedule, Trace, change_of, features, pairs
from tenuto.errors import CalibrationError

__all__ = ["LadderRecorder", "Sample", "error_ratios", "samples"]

MOST_BINS, GRAM_BYTES = 50, 4 * 2**30  # one bin per step, fewer where the Gram matrices would outgrow memory
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


def samples(trace: Trace, schedule: Schedule, longest: int) -> Iterator[Sample]:
    """Every step of an uncached generation, estimated from every gap up to ``longest``."""
    for (branch, span), steps in trace.items():
        for index, _, past in pairs(steps, longest):
            hidden, residual = steps[index]
            place = Span(span, 0, 0)
            step = Step(index, None, schedule.timesteps[index], branch, place, True, hidden, None, _nothing)
            yield Sample(step, past, residual)


def _nothing() -> torch.Tensor:
    raise NotImplementedError("a recorded step has no modulated input")


def error_ratios(estimator: Ladder, given: Iterable[Sample]) -> dict[tuple[int, int, int], list[float]]:
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
        self._rehearsals = rehearsals

    def begin(self, generation: int) -> None:
        self._digest()
        self.generation = generation

    def observe(self, step: Step, residual: Streams) -> None:
        self.timesteps[step.index] = step.timestep
        self.trace.setdefault((step.branch, step.span.index), []).append((step.hidden, residual))

    def rehearsals(self) -> tuple[FeaturePolicy, ...]:
        return self._rehearsals

    def estimated(self, step: Step, state: Past, residual: Streams) -> None:
        self.closed.append(Sample(step, state, residual))

    @property
    def schedule(self) -> Schedule:
        """The denoising steps seen."""
        return Schedule(tuple(self.timesteps[i] for i in sorted(self.timesteps)))

    def _digest(self) -> None:
        """Stream the finished generation into the Gram matrices, or hold it out."""
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

    def _affordable_bins(self) -> int:
        """As many bins as there are steps, unless the Gram matrices would outgrow ``GRAM_BYTES``."""
        first = {span: steps[0][0] for (_, span), steps in self.trace.items()}
        columns = [3 * h.shape[-1] + 1 for streams in first.values() for h in streams if h is not None]
        cost = 8 * self.longest * sum(n * (n + n // 3) for n in columns)
        if cost > GRAM_BYTES:
            raise CalibrationError(
                f"Fitting the maps to this model takes {cost / 2**30:.1f} GiB of Gram matrices, more than "
                f"{GRAM_BYTES / 2**30:.0f}. Give a smaller longest than {self.longest}, or use a policy without maps."
            )
        return max(min(MOST_BINS, len(self.timesteps), GRAM_BYTES // cost), 1)

    def _add(self, given: Iterable[Sample], weight: float) -> None:
        for step, past, residual in given:
            gap = step.index - past.index
            place = step.index * self.bins // len(self.timesteps)
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
        numbers = {
            "span": self.span,
            "longest": self.longest,
            "rung": self.rung,
            "timesteps": self.schedule.timesteps,
            "bins": self.bins,
            "cells": index,
            "ladder": summary,
            **self._gates(Ladder(self.schedule, self.bins, cells)),
        }
        return tensors, numbers

    def _choose(self) -> tuple[dict[Cell, Weights], list[dict[str, Any]]]:
        """The chosen rung of every cell, and what each rung would do if it stood everywhere."""
        allowed = RUNGS if self.rung == "auto" else (self.rung,)
        ladders = {
            rung: {cell: solve(rung, gram, RIDGE, self.rank) for cell, gram in self.grams.items()} for rung in allowed
        }
        errors = {rung: self._errors(Ladder(self.schedule, self.bins, cells)) for rung, cells in ladders.items()}
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

    def _errors(self, estimator: Ladder) -> dict[Cell, _Error]:
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

    def _gates(self, estimator: Ladder) -> dict[str, Any]:
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
