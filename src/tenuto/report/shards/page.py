"""The part of the page about sharded caches: what its template is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenuto.errors import InputError
from tenuto.records.shards import BASELINE, ShardsRun
from tenuto.report import units
from tenuto.report.facts import Headline, shared_head
from tenuto.report.shards.table import COLUMNS, shards_rows

__all__ = ["shards_part"]


def _headlines(runs: Sequence[ShardsRun]) -> list[Headline]:
    pairs = [run for run in runs if run.placement != BASELINE]
    if not pairs:
        return []
    ranks = len(pairs[0].bytes_held)
    figures = [Headline(title="Placements and selectors", value=str(len(pairs)), note=f"on {ranks} ranks")]
    exact = [run for run in pairs if run.selector == "all" and run.codec == "raw" and not run.tokens_deleted]
    if exact:
        run = max(exact, key=lambda run: run.logit_gap)
        note = f"largest difference of a logit where everything is read; the largest logit is {run.logit_largest:.1f}"
        figures.append(Headline(title="Exactness", value=f"{run.logit_gap:.1e}", note=note, policy=run.policy))
        run = min(exact, key=lambda run: max(run.bytes_held))
        share = max(run.bytes_held) / run.bytes_full
        note = f"{units.size(max(run.bytes_held))} of {units.size(run.bytes_full)}, everything read"
        title = "Least on the fullest rank"
        figures.append(Headline(title=title, value=units.percent(share), note=note, policy=run.policy))
    sparse = [run for run in pairs if run.selector != "all"]
    if sparse:
        run = min(sparse, key=lambda run: run.kl)
        note = f"nats a token from the model's own cache, {units.percent(run.read)} of tokens read"
        figures.append(Headline(title="Closest selector", value=f"{run.kl:.3f}", note=note, policy=run.policy))
    return figures


def _grid(runs: Sequence[ShardsRun]) -> dict[str, Any]:
    """KL by placement and selector, of what keeps raw pages in memory; a dash where a pair was not measured."""
    plain = [run for run in runs if run.placement != BASELINE and (run.codec, run.schedule) == ("raw", "none")]
    found = {(run.placement, run.selector): run.kl for run in plain}
    selectors = list(dict.fromkeys(run.selector for run in plain))
    rows = [
        (placed, [f"{found[placed, name]:.4f}" if (placed, name) in found else units.DASH for name in selectors])
        for placed in dict.fromkeys(run.placement for run in plain)
    ]
    return {"selectors": selectors, "rows": rows}


def shards_part(runs: Sequence[ShardsRun], folder: Path) -> dict[str, Any]:
    """The values of ``page.html``.

    Raises:
        InputError: the records are of several models.
    """
    if len({run.fingerprint for run in runs}) > 1:
        raise InputError("The folder's sharded caches are of several models. Give each model a folder of its own.")
    rows, named = shards_rows(runs), [(run.policy, run) for run in runs]
    return {
        "id": "shards",
        "title": "Sharded key-value caches",
        "lead": "Keys and values on several ranks: placements and selectors against the model's own cache.",
        **shared_head(named),
        "headlines": _headlines(runs),
        "columns": COLUMNS,
        "help": COLUMNS,
        "baselines": [row for row in rows if row.baseline],
        "methods": [row for row in rows if not row.baseline],
        "grid": _grid(runs),
        "records": json.dumps([run.row() for run in runs], indent=1, ensure_ascii=False),
    }
