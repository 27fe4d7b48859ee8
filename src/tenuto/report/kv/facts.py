"""The figures of the KV part to look at first."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tenuto.records.kv import BASELINE, KVRun
from tenuto.report import units
from tenuto.report.diffusion.table import Row
from tenuto.report.facts import Headline
from tenuto.report.kv.scores import worse
from tenuto.report.kv.table import label, task_units

__all__ = ["kv_headlines"]


def _where(run: KVRun) -> str:
    return f"{run.context:,}{units.NBSP}tokens of context"


def _as_good(run: KVRun, tasks: Sequence[str]) -> bool:
    """Whether no task is measurably worse than with the full cache; all tasks must have been paired with it."""
    scores = [run.scores.get(task) for task in tasks]
    return bool(scores) and all(score and score.loss_interval and not worse(score) for score in scores)


def _compared(rows: Sequence[Row[KVRun]]) -> Headline:
    runs = [row.run for row in rows if not row.baseline]
    budgets, contexts = {run.budget for run in runs}, {run.context for run in runs}
    withheld = {run.policy for run in runs if run.withheld}
    note = f"{len(budgets)} budget{'s' * (len(budgets) != 1)}, {len(contexts)} context{'s' * (len(contexts) != 1)}"
    if not any(row.baseline for row in rows):
        note += f", without a baseline Run ({BASELINE!r})"
    if withheld:
        note += f"; {len(withheld)} of them withheld"
    return Headline(title="Policies compared", value=str(len({run.policy for run in runs})), note=note)


def kv_headlines(rows: Sequence[Row[KVRun]]) -> list[Headline]:
    """How many policies there are, the fewest bytes at no measurable loss, and the fastest decode."""
    runs = [row.run for row in rows if not row.baseline and not row.run.withheld]
    tasks = list(task_units([row.run for row in rows]))
    figures = [_compared(rows)]
    good = [(run.held, run) for run in runs if run.held is not None and _as_good(run, tasks)]
    if good:
        held, run = min(good, key=lambda pair: pair[0])
        kept = f"{units.size(run.bytes_held)} of {units.size(run.bytes_full)}, {_where(run)}"
        note = f"{kept}; no task is measurably worse"
        title = "Fewest bytes as good as the full cache"
        figures.append(Headline(title=title, value=units.percent(held), note=note, policy=label(run)))
    elif tasks and runs:
        note = "every policy is measurably worse on some task, or was not measured on all"
        figures.append(Headline(title="As good as the full cache", value="none", note=note))
    decoded = [(median(run.decode.ratios), run) for run in runs if run.decode]
    if decoded:
        ratio, run = max(decoded, key=lambda pair: pair[0])
        spread = units.span(*(f"{end(run.decode.ratios):.2f}" for end in (min, max))) if run.decode else ""
        note = f"time per token of the full cache over the policy's, {spread}, {_where(run)}"
        figures.append(Headline(title="Fastest decode", value=units.times(ratio), note=note, policy=label(run)))
    return figures
