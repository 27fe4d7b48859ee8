"""The table: which columns, and what stands in each cell, also where a value is missing or withheld."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from tenuto.records.diffusion import Run
from tenuto.report import units

__all__ = ["BASELINE", "COLUMNS", "IDENTICAL", "Cell", "Column", "Row", "columns_of", "missing", "table_rows"]

R = TypeVar("R")

BASELINE = "none"
"""The policy text of the uncached baseline."""

IDENTICAL = 100.0
"""PSNR in dB from which pictures are identical: records hold no infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Text and small print; ``value`` is what a click on the column sorts by, None sorts last.

    ``more`` is a second line of small print, ``worse`` whether it stands out.
    """

    text: str
    note: str = ""
    value: float | None = None
    more: str = ""
    worse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[R]):
    """A heading with its small print, which end is better ("higher", "lower" or ""), its cells and its explanation."""

    title: str
    note: str
    better: str
    cell: Callable[[R], Cell]
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Generic[R]):
    """One Run: its number in its table, its cells in the order of the columns, and small print below its name."""

    number: int
    run: R
    baseline: bool
    cells: list[Cell]
    front: bool = False
    note: str = ""


def missing(note: str = "not measured") -> Cell:
    """A cell without a value, which sorts last."""
    return Cell(text=units.DASH, note=note)


def _plain(value: float | None, text: Callable[[float], str]) -> Cell:
    return missing() if value is None else Cell(text=text(value), value=value)


def _speedup(run: Run) -> Cell:
    pairs = len(run.timing.seconds) if run.timing else 0
    each = units.duration(median(run.timing.seconds)) if run.timing else ""
    if run.policy == BASELINE:
        return Cell(text=units.times(1.0), note=f"reference, {each}" if each else "reference", value=1.0)
    if run.withheld or run.speedup is None:
        return missing(f"withheld: {run.withheld}" if run.withheld else "not timed")
    low_high = run.speedup_range
    note = units.span(f"{low_high[0]:.2f}", f"{low_high[1]:.2f}") if low_high else "no range"
    return Cell(text=units.times(run.speedup), note=f"{note}, n={pairs}" if pairs else note, value=run.speedup)


def _flops(run: Run) -> Cell:
    if run.policy == BASELINE and run.flops_speedup is None:
        return Cell(text=units.times(1.0), note="reference", value=1.0)
    return _plain(run.flops_speedup, units.times)


def _psnr(run: Run) -> Cell:
    if run.psnr is None:
        return missing("reference" if run.policy == BASELINE else "not measured")
    if run.psnr >= IDENTICAL:
        return Cell(text=f"{run.psnr:.2f}", note="identical", value=run.psnr)
    interval = run.psnr_interval
    note = units.span(f"{interval[0]:.1f}", f"{interval[1]:.1f}") if interval else "no interval"
    return Cell(text=f"{run.psnr:.2f}", note=note, value=run.psnr)


def _ssim(run: Run) -> Cell:
    if run.ssim is None and run.policy == BASELINE:
        return missing("reference")
    return _plain(run.ssim, lambda v: f"{v:.4f}")


def _motion(run: Run) -> Cell:
    if run.motion_error is None:
        return missing("reference" if run.policy == BASELINE else "not measured")
    frames = [f"{value:.1f}" for value in (min(run.frame_psnr), max(run.frame_psnr))] if run.frame_psnr else []
    note = f"frames {units.span(*frames)} dB" if frames else ""
    return Cell(text=f"{run.motion_error:.3f}", note=note, value=run.motion_error)


def _reuse(run: Run) -> Cell:
    forecast, reuse = run.telemetry.get("forecast"), run.telemetry.get("reuse")
    counted = isinstance(forecast, int) and isinstance(reuse, int) and forecast + reuse > 0
    note = f"{units.percent(forecast / (forecast + reuse), 0)} forecast" if counted and forecast else ""
    return Cell(text=units.percent(run.reuse_ratio), note=note, value=run.reuse_ratio)


COLUMNS: tuple[Column[Run], ...] = (
    Column(
        title="Speed-up",
        note="wall clock, median, range",
        better="higher",
        cell=_speedup,
        help="Seconds of the uncached model over seconds with the policy, measured in turns after a warm-up. The large "
        "number is the median of n pairs, below it are the smallest and the largest.",
    ),
    Column(
        title="FLOPs",
        note="speed-up by operations",
        better="higher",
        cell=_flops,
        help="Operations the denoiser would have executed over operations really executed, estimates included. It does "
        "not depend on the machine; wall clock is what you will notice.",
    ),
    Column(
        title="PSNR",
        note="dB, 95 % interval",
        better="higher",
        cell=_psnr,
        help="How close the pictures are to the uncached ones of the same seeds, mean over pictures. From about 30 dB "
        "the differences are hard to see; below 20 dB they are other pictures; 100 dB stands for identical.",
    ),
    Column(
        title="SSIM",
        note="structure, up to 1",
        better="higher",
        cell=_ssim,
        help="Similarity of local structure to the uncached pictures of the same seeds; 1 is identical.",
    ),
    Column(
        title="FID-fashion",
        note="distance to real images",
        better="lower",
        cell=lambda run: _plain(run.fid, lambda v: f"{v:.2f}"),
        help="Fréchet distance between classifier features of the generated pictures and of the test set. Compare it "
        "with the baseline's: it tells whether the pictures are still good, even where they are other pictures. It "
        "depends on the number of samples.",
    ),
    Column(
        title="Class accuracy",
        note="classifier agrees",
        better="higher",
        cell=lambda run: _plain(run.class_accuracy, units.percent),
        help="How often a classifier sees the class that was asked for. Compare it with the baseline's.",
    ),
    Column(
        title="Reuse ratio",
        note="blocks not computed",
        better="",
        cell=_reuse,
        help="Share of block executions that a stored or forecast output replaced (fewer steps: left out), as counted.",
    ),
    Column(
        title="Peak memory",
        note="growth while running",
        better="lower",
        cell=lambda run: _plain(run.peak_bytes, units.size),
        help="The most memory the process held above what it held before the generation began.",
    ),
    Column(
        title="Cache",
        note="most held",
        better="lower",
        cell=lambda run: Cell(text=units.size(run.cache_bytes), value=run.cache_bytes),
        help="The most bytes of stored tensors and surrogate weights held at one time.",
    ),
    Column(
        title="Calibration",
        note="once per model",
        better="lower",
        cell=lambda run: Cell(text=units.duration(run.calibration_seconds), value=run.calibration_seconds),
        help="One-off cost of the profile the policy needs. 0 s: none is needed, or it comes with the model.",
    ),
)


MOTION: Column[Run] = Column(
    title="Motion error",
    note="0 is the uncached motion",
    better="lower",
    cell=_motion,
    help="How far changes from frame to frame are from the uncached clip's, relative to them: 0 is the same motion, "
    "1 is what a clip has that stands still. Below it the PSNR of the worst and of the best frame number.",
)


def columns_of(runs: Sequence[Run]) -> tuple[Column[Run], ...]:
    """The columns of a table of these Runs: with the one about motion where clips were measured."""
    if all(run.motion_error is None for run in runs):
        return COLUMNS
    after = [column.title for column in COLUMNS].index("SSIM") + 1
    return (*COLUMNS[:after], MOTION, *COLUMNS[after:])


def _front(runs: list[Run]) -> set[int]:
    """Indices of the Runs that no other Run beats in both wall-clock speed-up and PSNR."""
    known = [(i, r.speedup, r.psnr) for i, r in enumerate(runs) if r.speedup is not None and r.psnr is not None]
    known = [(i, s, p) for i, s, p in known if not runs[i].withheld and runs[i].policy != BASELINE]
    return {
        i for i, s, p in known if not any(s2 >= s and p2 >= p and (s2, p2) != (s, p) for _, s2, p2 in known) and s > 1
    }


def table_rows(runs: list[Run]) -> list[Row[Run]]:
    """One row per Run in the order given; the baseline is number 0 and the others count from 1."""
    front, number, rows, columns = _front(runs), 0, [], columns_of(runs)
    for index, run in enumerate(runs):
        baseline = run.policy == BASELINE
        number += not baseline
        cells = [column.cell(run) for column in columns]
        note = "no cache, the baseline" if baseline else ""
        rows.append(
            Row(
                number=0 if baseline else number,
                run=run,
                baseline=baseline,
                cells=cells,
                front=index in front,
                note=note,
            )
        )
    return rows
