"""The part of the page about shortened prompts: quality against ratio, a table, and the text coloured by span."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tenuto.records.prompt import PromptRun
from tenuto.report import units
from tenuto.report.axes import Frame, across_axis, colour, marker, scale, up_axis, whiskers
from tenuto.report.diffusion.table import BASELINE, Column, Row
from tenuto.report.facts import Headline, shared_head
from tenuto.report.prompt.table import COLUMNS, prompt_rows
from tenuto.report.svg import Attributes, element

__all__ = ["coloured", "prompt_part", "quality"]

FRAME = Frame(width=440.0, height=300.0, left=52.0, right=14.0, top=12.0, bottom=44.0)
SHOWN = 1500
"""Pieces of a text that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShortenedText:
    """A text as it was shortened, and at which ratio."""

    ratio: str
    html: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """What the page shows of one kind of text at one length; it is a part of its own for the table."""

    title: str
    id: str
    plot: Markup
    baselines: list[Row[PromptRun]]
    methods: list[Row[PromptRun]]
    texts: list[_ShortenedText]
    columns: Sequence[Column[PromptRun]]


def coloured(pieces: Sequence[tuple[str, int]]) -> Markup:
    """A text in pieces with the sizes of their spans: single tokens plain, spans shaded by size in two turning colours,
    what was dropped struck out."""
    parts, turn = list[Markup](), 0
    for text, size in pieces[:SHOWN]:
        if size == 0:
            parts.append(element("span", {"class": "dropped", "title": "dropped"}, text))
        elif size == 1:
            parts.append(element("span", {}, text))
        else:
            turn = 1 - turn
            shade = min(12 + 5 * size, 75)
            look = f"background: color-mix(in srgb, var(--m{turn}) {shade}%, transparent)"
            parts.append(element("span", {"style": look, "title": f"{size} tokens in one entry"}, text))
    if len(pieces) > SHOWN:
        parts.append(element("span", {"class": "soft"}, f" ... and {len(pieces) - SHOWN} pieces more"))
    return element("div", {"class": "tokens"}, *parts)


def quality(runs: Sequence[PromptRun], ways: Sequence[str], title: str) -> Markup:
    """Nats beyond the whole prompt against ratio, one line per way; empty without runs.

    Args:
        ways: of the page, which give each its colour.
    """
    if not runs:
        return Markup("")
    across = scale([run.ratio for run in runs], FRAME.across, 0.2)
    up = scale([v for run in runs for v in (run.extra, *(run.extra_interval or ()))] + [0.0], FRAME.up, 0.1)
    parts = across_axis(FRAME, across, "entries over tokens", lambda tick: f"{tick:g}")
    parts += up_axis(FRAME, up, "nats beyond the whole prompt")
    for number, way in enumerate(ways):
        mine = sorted((run for run in runs if run.way == way), key=lambda run: run.ratio)
        if not mine:
            continue
        path = "L".join(f"{across(run.ratio):.1f} {up(run.extra):.1f}" for run in mine)
        parts.append(element("path", {"class": f"curve {colour(number)}", "d": f"M{path}"}))
        for run in mine:
            x, y = across(run.ratio), up(run.extra)
            bars = (up(run.extra_interval[0]), up(run.extra_interval[1])) if run.extra_interval else None
            told = element("title", {}, f"{way}, {run.ratio:g}: {run.extra:+.3f} nats per token")
            parts.append(element("g", {}, told, whiskers(number, x, y, None, bars), marker(number, x, y)))
    head: Attributes = {"viewBox": f"0 0 {FRAME.width:g} {FRAME.height:g}", "role": "img", "aria-label": title}
    return element("svg", {"class": "plot", **head}, *parts)


def _group(rows: Sequence[Row[PromptRun]], ways: Sequence[str], number: int) -> _Group:
    first = rows[0].run
    title = f"{first.kind}, {first.context:,} tokens"
    methods = [row for row in rows if not row.baseline]
    texts = [
        _ShortenedText(ratio=f"{row.run.ratio:g}", html=coloured(row.run.pieces)) for row in methods if row.run.pieces
    ]
    plot = quality([row.run for row in methods], ways, f"{title}: loss against ratio")
    return _Group(
        title=title,
        id=f"prompt-{number}",
        plot=plot,
        baselines=[row for row in rows if row.baseline],
        methods=methods,
        texts=texts,
        columns=COLUMNS,
    )


def _headlines(runs: Sequence[PromptRun]) -> list[Headline]:
    """How many ways there are, and where a method that was measured costs least and is soonest."""
    merged = [run for run in runs if run.reference]
    ways = len({run.way for run in runs if run.way != BASELINE})
    figures = [Headline(title="Ways compared", value=str(ways), note="to read a prompt into fewer entries")]
    if merged:
        least = min(merged, key=lambda run: run.extra)
        soonest = max(merged, key=lambda run: run.speedup)
        figures += [
            Headline(title="Least loss", value=f"{least.extra:+.3f} nats", note=f"{least.way}, {_where(least)}"),
            Headline(
                title="Soonest first token",
                value=units.times(soonest.speedup),
                note=f"{soonest.way}, {_where(soonest)}",
            ),
        ]
    return figures


def _where(run: PromptRun) -> str:
    return f"{run.kind}, {run.context:,} tokens, ratio {run.ratio:g}, {run.examples} examples"


def prompt_part(runs: Sequence[PromptRun], folder: Path) -> dict[str, Any]:
    """The values of ``page.html``, of records that were checked."""
    rows = prompt_rows(runs)
    ways = list(dict.fromkeys(row.run.way for row in rows if not row.baseline))
    groups = list(dict.fromkeys((run.kind, run.context) for run in runs))
    named = [(f"{run.way}, {_where(run)}", run) for run in runs]
    return {
        "id": "prompt",
        "title": "Shortened prompts",
        "lead": "Each way to read a prompt into fewer entries than tokens against the whole prompt, on the same texts.",
        **shared_head(named),
        "headlines": _headlines(runs),
        "columns": COLUMNS,
        "legend": [(way, marker(number, 8, 8)) for number, way in enumerate(ways)],
        "groups": [
            _group([row for row in rows if (row.run.kind, row.run.context) == group], ways, number)
            for number, group in enumerate(groups)
        ],
        "records": json.dumps([run.row() for run in runs], indent=1, ensure_ascii=False),
    }
