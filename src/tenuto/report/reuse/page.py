"""The part of the page about stores of prefixes: what its template is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenuto.errors import InputError
from tenuto.records.reuse import ReuseRun
from tenuto.report import units
from tenuto.report.facts import Headline, shared_head
from tenuto.report.reuse.table import COLUMNS, reuse_rows

__all__ = ["reuse_part"]


def _headlines(runs: Sequence[ReuseRun]) -> list[Headline]:
    figures = [Headline(title="Stores and codecs", value=str(len(runs)), note="against computing the prompt")]
    same = [run for run in runs if run.same_text]
    if same:
        run = max(same, key=lambda run: run.speedup)
        note = f"{units.duration(run.restore_s)} to the first token; of those with the same text"
        figures.append(Headline(title="Fastest", value=units.times(run.speedup), note=note, policy=run.policy))
        run = min(same, key=lambda run: run.bytes_stored)
        note = f"{units.size(run.bytes_stored)} of {units.size(run.bytes_full)}; of those with the same text"
        figures.append(Headline(title="Smallest", value=units.percent(run.share), note=note, policy=run.policy))
    return figures


def reuse_part(runs: Sequence[ReuseRun], folder: Path) -> dict[str, Any]:
    """The values of ``page.html``.

    Raises:
        InputError: the records are of several models.
    """
    if len({run.fingerprint for run in runs}) > 1:
        raise InputError("The folder's stores are of several models. Give each model a folder of its own.")
    named = [(run.policy, run) for run in runs]
    return {
        "id": "reuse",
        "title": "Stores of prefixes",
        "lead": "A prompt's keys and values loaded from a store, against computing them.",
        **shared_head(named),
        "headlines": _headlines(runs),
        "columns": COLUMNS,
        "help": COLUMNS,
        "baselines": [],
        "absent": "Each row was timed in turns with computing the same prompt: its seconds are under Load.",
        "methods": reuse_rows(runs),
        "records": json.dumps([run.row() for run in runs], indent=1, ensure_ascii=False),
    }
