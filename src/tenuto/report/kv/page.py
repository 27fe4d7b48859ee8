"""The part of the page about KV Runs: what its template is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tenuto.records.kv import KVRun
from tenuto.report import units
from tenuto.report.diffusion.curves import Curves
from tenuto.report.diffusion.table import Row
from tenuto.report.facts import shared_head
from tenuto.report.kv.check import check_units
from tenuto.report.kv.facts import kv_headlines
from tenuto.report.kv.maps import kept_map, shade
from tenuto.report.kv.plots import kv_legend, quality_plots, ratio_plot
from tenuto.report.kv.table import kv_columns, kv_help, kv_rows, label

__all__ = ["kv_part"]

SHADES = (0.0, 0.05, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _KVExhibit:
    """The maps of one Run, with what they say in words."""

    row: Row[KVRun]
    note: str
    svg: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """What the page draws of one context length."""

    tokens: str
    quality: list[Curves]
    speed: list[Curves]
    exhibits: list[_KVExhibit]
    unmapped: list[Row[KVRun]]


def _name(run: KVRun) -> str:
    return f"{label(run)}, {run.context:,} tokens"


def _exhibit(row: Row[KVRun]) -> _KVExhibit:
    run = row.run
    held = "" if run.held is None else f", holds {units.percent(run.held)} of the bytes"
    return _KVExhibit(row=row, note=f"{run.budget}{held}", svg=kept_map(run.heads, run.survivors, _name(run)))


def _context(rows: Sequence[Row[KVRun]], tokens: int) -> _Context:
    here = [row for row in rows if row.run.context == tokens and not row.baseline and not row.run.withheld]
    exhibits = [_exhibit(row) for row in here]
    first = ratio_plot(rows, tokens, "Time to the first token", lambda run: run.ttft)
    return _Context(
        tokens=f"{tokens:,}",
        quality=quality_plots(rows, tokens),
        speed=[first, ratio_plot(rows, tokens, "Decoding, time per token", lambda run: run.decode)],
        exhibits=[shown for shown in exhibits if shown.svg],
        unmapped=[shown.row for shown in exhibits if not shown.svg],
    )


def kv_part(runs: Sequence[KVRun], folder: Path) -> dict[str, Any]:
    """The values of ``page.html``.

    Raises:
        InputError: the records do not fit together.
    """
    check_units(runs)
    rows = kv_rows(runs)
    columns = kv_columns(runs)
    named = [(_name(run), run) for run in runs]
    return {
        "id": "kv",
        "title": "Key-value caches",
        "lead": "Each policy at each budget against the full cache of the same model on the same examples.",
        **shared_head(named),
        "headlines": kv_headlines(rows),
        "columns": columns,
        "help": kv_help(columns),
        "baselines": [row for row in rows if row.baseline],
        "methods": [row for row in rows if not row.baseline],
        "legend": kv_legend(rows),
        "contexts": [_context(rows, tokens) for tokens in sorted({run.context for run in runs})],
        "shades": [(units.percent(share, 0), f"{shade(share):.2f}") for share in SHADES],
        "records": json.dumps([row for run in runs for row in run.rows()], indent=1, ensure_ascii=False),
    }
