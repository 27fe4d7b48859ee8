"""The table of KV Runs: a column for every task of the folder, and what stands in each cell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

from tenuto.records.kv import BASELINE, KVRun
from tenuto.records.timing import Timing
from tenuto.report import units
from tenuto.report.diffusion.table import Cell, Column, Row, missing
from tenuto.report.kv.scores import KINDS, loss, shown, worse

__all__ = ["budget_size", "kv_columns", "kv_help", "kv_rows", "label", "ratio_texts", "task_units"]

BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def label(run: KVRun) -> str:
    """Policy and budget on one line; of the baseline only its name."""
    return run.policy if run.policy == BASELINE else f"{run.policy}, {run.budget}"


def task_units(runs: Sequence[KVRun]) -> dict[str, str]:
    """``{task: unit}`` of all tasks, in the order in which they were asked for."""
    return {name: score.unit for run in runs for name, score in run.scores.items()}


def budget_size(text: str) -> tuple[str, float]:
    """What budgets are sorted by: the kind, then the amount; one without an amount, such as "full", is largest."""
    found = re.fullmatch(r"(\w+)=([\d.]+(?:e-?\d+)?)(|KiB|MiB|GiB)", text)
    return (found[1], float(found[2]) * BYTES[found[3]]) if found else ("~", math.inf)


def ratio_texts(timing: Timing) -> tuple[str, str]:
    """Ratios to the full cache: their median and how many, and their range: ``("1.02×, n=5", "0.97 to 1.06")``."""
    ratios = timing.ratios
    spread = units.span(f"{min(ratios):.2f}", f"{max(ratios):.2f}")
    return f"{units.times(median(ratios))}, n={len(ratios)}", spread


def _measured(cell: Callable[[KVRun], Cell]) -> Callable[[KVRun], Cell]:
    return lambda run: missing("") if run.withheld else cell(run)


def _score(task: str, run: KVRun) -> Cell:
    score = run.scores.get(task)
    if score is None:
        return missing()
    text, note = shown(score)
    lost = "reference" if run.policy == BASELINE else loss(score) or "loss not known"
    return Cell(text=text, note=note, value=score.value, more=lost, worse=worse(score))


def _held(run: KVRun) -> Cell:
    if run.held is None:
        return missing()
    return Cell(text=units.percent(run.held), note=units.size(run.bytes_held), value=run.held)


def _timed(timing: Timing | None, value: float | None, text: Callable[[float], str], *, baseline: bool) -> Cell:
    if timing is None or value is None:
        return missing()
    note, spread = ("reference", "") if baseline else ratio_texts(timing)
    return Cell(text=text(value), note=note, value=value, more=spread)


def _ttft(run: KVRun) -> Cell:
    return _timed(run.ttft, run.ttft_s, units.duration, baseline=run.policy == BASELINE)


def _decode(run: KVRun) -> Cell:
    return _timed(run.decode, run.decode_cpu_ms, units.milliseconds, baseline=run.policy == BASELINE)


def _peak(run: KVRun) -> Cell:
    if not run.peak_bytes:
        return missing()
    note = f"{units.percent(run.peak_bytes / run.bytes_full)} of full" if run.bytes_full else ""
    return Cell(text=units.size(run.peak_bytes), note=note, value=run.peak_bytes)


def _examples(task: str, runs: Sequence[KVRun]) -> str:
    """How many examples a score is the mean of, in all Runs."""
    counts = sorted({run.scores[task].count for run in runs if task in run.scores})
    return f"n={counts[0]}" if len(counts) == 1 else f"n={units.span(str(counts[0]), str(counts[-1]))}"


def _task_column(task: str, unit: str, runs: Sequence[KVRun]) -> Column[KVRun]:
    kind = KINDS[unit]
    return Column(
        title=task,
        note=f"{kind.unit}, {_examples(task, runs)}",
        better=kind.better,
        cell=_measured(partial(_score, task)),
        help=f"{kind.help} Mean of n examples; below it its 95 % interval, then the paired loss to the full cache on "
        "the same examples, above 0 where the policy is worse, with its 95 % interval; bold if all of it is above 0.",
    )


def _setting_columns(runs: Sequence[KVRun]) -> list[Column[KVRun]]:
    order = sorted({run.budget for run in runs}, key=budget_size)
    return [
        Column(
            title="Budget",
            note="allowed",
            better="",
            cell=lambda run: Cell(text=run.budget, value=order.index(run.budget)),
            help="What the policy was allowed: keep is a fraction of all tokens, tokens are per layer and KV head, "
            "bytes are of the whole cache. A policy that only quantises keeps all tokens and holds fewer bytes.",
        ),
        Column(
            title="Context",
            note="tokens",
            better="",
            cell=lambda run: Cell(text=f"{run.context:,}", value=run.context),
            help="Tokens of the contexts, at most. Rows of different contexts are compared with their own baselines.",
        ),
    ]


HELD: Column[KVRun] = Column(
    title="Held",
    note="bytes, % of full",
    better="lower",
    cell=_measured(_held),
    help="Bytes of the tensors that the cache holds after the context was compressed, over the bytes of the full cache "
    "for the same contexts, means over the examples. Counted, not computed from the budget: positions, weights, scales "
    "and recent tokens at full precision are in it.",
)
TIME_COLUMNS: tuple[Column[KVRun], ...] = (
    Column(
        title="TTFT",
        note="time, ratio",
        better="lower",
        cell=_measured(_ttft),
        help="Time to the first token, median: wall clock from a context to the first token after it, compression "
        "included. Below it: how many times as fast as the full cache (above 1 is faster), measured in turns: median, "
        "smallest and largest of n pairs.",
    ),
    Column(
        title="Decode",
        note="a token, ratio",
        better="lower",
        cell=_measured(_decode),
        help="Time of one decoded token after the context, median: CPU time on a processor, by the clock on an "
        "accelerator. Below it: how many times as fast as the full cache, as for TTFT. At other lengths it is another.",
    ),
    Column(
        title="Peak cache",
        note="most held",
        better="lower",
        cell=_measured(_peak),
        help="The most bytes the cache held, just before a compression. A policy that compresses once at the end of "
        "the context holds all of it until then.",
    ),
)


def kv_columns(runs: Sequence[KVRun]) -> list[Column[KVRun]]:
    """Budget, context and what is held of it, a column for each task, and what the policy costs."""
    tasks = [_task_column(task, unit, runs) for task, unit in task_units(runs).items()]
    return [*_setting_columns(runs), HELD, *tasks, *TIME_COLUMNS]


def kv_help(columns: Sequence[Column[KVRun]]) -> list[Column[KVRun]]:
    """The columns to explain: those with the same explanation are one, under all their titles."""
    titles: dict[str, list[str]] = {}
    for column in columns:
        titles.setdefault(column.help, []).append(column.title)
    firsts = {column.help: column for column in reversed(columns)}
    return [replace(firsts[text], title=", ".join(names)) for text, names in titles.items()]


def _note(run: KVRun) -> str:
    if run.policy == BASELINE:
        return "full cache, the baseline"
    return f"withheld: {run.withheld}" if run.withheld else ""


def kv_rows(runs: Sequence[KVRun]) -> list[Row[KVRun]]:
    """One row per Run in the order given; baselines are number 0 and the others count from 1."""
    columns, number, rows = kv_columns(runs), 0, []
    for run in runs:
        baseline = run.policy == BASELINE
        number += not baseline
        cells = [column.cell(run) for column in columns]
        rows.append(Row(number=0 if baseline else number, run=run, baseline=baseline, cells=cells, note=_note(run)))
    return rows
