"""The table of PromptRuns: its columns, and what stands in each cell."""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.records.prompt import PromptRun
from tenuto.report import units
from tenuto.report.diffusion.table import BASELINE, Cell, Column, Row

__all__ = ["COLUMNS", "prompt_rows"]


def _paired(value: float, interval: tuple[float, float] | None, *, lower: bool) -> Cell:
    """A paired difference with its interval; bold where all of it is on the worse side."""
    note = units.span(f"{interval[0]:+.3f}", f"{interval[1]:+.3f}") if interval else "no interval"
    bad = interval is not None and (interval[0] > 0 if lower else interval[1] < 0)
    return Cell(text=f"{value:+.3f}", more=note, value=value, worse=bad)


def _beyond(run: PromptRun) -> Cell:
    if run.way == BASELINE:
        return Cell(text=f"{0:.3f}", note="reference", value=0.0)
    return _paired(run.extra, run.extra_interval, lower=True)


def _behind(run: PromptRun) -> Cell:
    if run.reference:
        return Cell(text=f"{0:.3f}", note="reference", value=0.0)
    return _paired(run.behind, run.behind_interval, lower=True)


def _first_token(run: PromptRun) -> Cell:
    note = "reference" if run.way == BASELINE else units.times(run.speedup)
    return Cell(text=units.duration(run.seconds), note=note, value=run.seconds)


COLUMNS: list[Column[PromptRun]] = [
    Column(
        title="Ratio",
        note="asked",
        better="",
        cell=lambda run: Cell(text=f"{run.ratio:g}", value=run.ratio),
        help="Entries over tokens that the shortening ways were asked for.",
    ),
    Column(
        title="Held",
        note="entries, bytes",
        better="lower",
        cell=lambda run: Cell(text=units.percent(run.held), note=f"{units.percent(run.size)} of bytes", value=run.held),
        help="Entries that the cache holds over tokens of the prompt, the mean over layers and examples; below it the "
        "bytes of its tensors over those of the whole prompt's.",
    ),
    Column(
        title="Loss",
        note="nats per token",
        better="lower",
        cell=lambda run: Cell(text=f"{run.loss:.3f}", note=f"n={run.examples}", value=run.loss),
        help="Mean negative log-likelihood of the text's own next tokens after the prompt; for a task, of the tokens "
        "of the right answer.",
    ),
    Column(
        title="Beyond none",
        note="nats, paired",
        better="lower",
        cell=_beyond,
        help="Loss beyond the whole prompt's on the same examples, with the 95 % interval of its mean; bold if all of "
        "it is above 0.",
    ),
    Column(
        title="Beyond method",
        note="nats, paired",
        better="lower",
        cell=_behind,
        help="Loss beyond that of the method that is measured (its row says reference) on the same examples, with the "
        "95 % interval of its mean: below 0 is better than the method; bold if all of it is above 0.",
    ),
    Column(
        title="Facts",
        note="of their tokens",
        better="higher",
        cell=lambda run: Cell(text=f"{run.right:.2f}", value=run.right),
        help="Share of the tokens of the right answers that are the model's likeliest, each after those before it.",
    ),
    Column(
        title="Answers",
        note="all right",
        better="higher",
        cell=lambda run: Cell(text=f"{run.answered:.2f}", value=run.answered),
        help="Share of the questions whose greedily generated answer begins with the right one.",
    ),
    Column(
        title="First token",
        note="time, ratio",
        better="lower",
        cell=_first_token,
        help="Median time to the first token, all it takes included: CPU time on a processor, by the clock on an "
        "accelerator; below it the median of the paired ratios of the whole prompt's time to this one.",
    ),
]


def prompt_rows(runs: Sequence[PromptRun]) -> list[Row[PromptRun]]:
    """One row per Run in the order given; the whole prompt is number 0, a way has the same number everywhere."""
    ways = list(dict.fromkeys(run.way for run in runs if run.way != BASELINE))
    return [
        Row(
            number=0 if run.way == BASELINE else ways.index(run.way) + 1,
            run=run,
            baseline=run.way == BASELINE,
            cells=[column.cell(run) for column in COLUMNS],
            note="the whole prompt" if run.way == BASELINE else run.method,
        )
        for run in runs
    ]
