"""The part of the page about trained attentions: what its template is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenuto.records.attention import AttentionRun, SeedGroup, grouped
from tenuto.report import units
from tenuto.report.attention.plots import bits_plots, cost_plots, recall_map
from tenuto.report.attention.table import attention_columns, attention_rows
from tenuto.report.axes import marker
from tenuto.report.facts import Headline, shared_head

__all__ = ["attention_part"]


def _headlines(groups: Sequence[SeedGroup]) -> list[Headline]:
    figures = [Headline(title="Attentions compared", value=str(len(groups)), note="same text, steps and parameters")]
    longest = max((bits.context for group in groups for run in group.runs for bits in run.bits), default=0)

    def measure(run: AttentionRun) -> float | None:
        bits = run.bits_at(longest)
        return bits.value if bits else None

    means = [(mean[0], group) for group in groups if (mean := group.mean(measure))]
    if means:
        value, best = min(means, key=lambda pair: pair[0])
        note = f"bits per byte in passes of {longest:,} tokens"
        figures.append(Headline(title="Best at the longest", value=f"{value:.3f}", note=note, policy=best.attention))
    return figures


def attention_part(runs: Sequence[AttentionRun], folder: Path) -> dict[str, Any]:
    """The values of ``page.html``, of records that were checked."""
    groups = grouped(runs)
    columns = attention_columns(groups)
    rows = attention_rows(groups, columns)
    lengths = sorted({length for run in runs for length, _, _ in run.recall})
    named = [
        (f"{r.attention}, seed {r.seed}", replace(r, model="one per row", fingerprint="one per row")) for r in runs
    ]
    return {
        "id": "attention",
        "title": "Attentions",
        "lead": "Small language models trained on the same text, equal but for their attention.",
        **shared_head(named),
        "headlines": _headlines(groups),
        "columns": columns,
        "help": columns,
        "baselines": [row for row in rows if row.baseline],
        "methods": [row for row in rows if not row.baseline],
        "legend": [(group.attention, marker(number, 8, 8)) for number, group in enumerate(groups)],
        "bits": bits_plots(groups),
        "cost": cost_plots(groups),
        "candidates": max(run.candidates for run in runs),
        "recall": [(f"{length:,}", recall_map(groups, length)) for length in lengths],
        "usage": _usage(groups),
        "records": json.dumps([run.row() for run in runs], indent=1, ensure_ascii=False),
    }


def _usage(groups: Sequence[SeedGroup]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Of every attention with levels: its name, the levels, and a row of shares per layer; of the first seed."""
    shown = []
    for group in groups:
        usage = group.runs[0].usage
        if levels := list(dict.fromkeys(level for layer in usage for level in layer)):
            rows = [[units.percent(layer.get(level, 0.0)) for level in levels] for layer in usage]
            shown.append((group.attention, levels, rows))
    return shown
