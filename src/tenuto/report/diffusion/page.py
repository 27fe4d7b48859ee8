"""The part of the page about image Runs: what its template is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tenuto.records.diffusion import Run
from tenuto.report.diffusion.curves import curves, legend
from tenuto.report.diffusion.heatmap import coverage, decision_map, fraction_map, shares
from tenuto.report.diffusion.pictures import Picture, load_picture
from tenuto.report.diffusion.table import Row, columns_of, table_rows
from tenuto.report.facts import headlines, shared_head

__all__ = ["diffusion_part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exhibit:
    """What the page shows of one policy besides its row."""

    row: Row[Run]
    samples: Picture
    difference: Picture
    decisions: Markup
    shares: str
    covered: str
    fractions: Markup


def _exhibit(row: Row[Run], folder: Path) -> _Exhibit:
    run = row.run
    return _Exhibit(
        row=row,
        samples=load_picture(folder, run, "grid"),
        difference=load_picture(folder, run, "difference"),
        decisions=decision_map(run.decisions, run.policy),
        shares=shares(run.decisions),
        covered=coverage(run.telemetry.get("cached")),
        fractions=fraction_map(run.grid, run.policy),
    )


def diffusion_part(runs: Sequence[Run], folder: Path) -> dict[str, Any]:
    """The values of ``page.html``, of records that were checked; a picture that cannot be shown is said to be so."""
    rows = table_rows(list(runs))
    baseline = next((row for row in rows if row.baseline), None)
    exhibits = [_exhibit(row, folder) for row in rows if not row.baseline]
    without = Picture(missing="The folder holds no baseline Run.")
    named = [(run.policy, run) for run in runs]
    return {
        "id": "diffusion",
        "title": "Image generation",
        "lead": "Each policy against the uncached output of the same model and the same seeds.",
        **shared_head(named),
        "headlines": headlines(rows),
        "columns": columns_of(runs),
        "baselines": [row for row in rows if row.baseline],
        "methods": [row for row in rows if not row.baseline],
        "plots": [curves(rows, wall_clock=True), curves(rows, wall_clock=False)],
        "legend": legend(rows),
        "uncached": load_picture(folder, baseline.run, "grid") if baseline else without,
        "exhibits": exhibits,
        "shadowed": [row for row in rows if row.run.shadow],
        "unmapped": [shown.row for shown in exhibits if not (shown.decisions or shown.fractions)],
        "records": json.dumps([run.row() for run in runs], indent=1, ensure_ascii=False),
    }
