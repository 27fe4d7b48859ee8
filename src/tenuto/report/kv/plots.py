"""Quality against bytes held, one plot per task; and how fast, one row per Run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from markupsafe import Markup

from tenuto.records.kv import KVRun, Score
from tenuto.records.timing import Timing
from tenuto.report import units
from tenuto.report.axes import Frame, Scale, across_axis, colour, marker, scale, up_axis, whiskers
from tenuto.report.diffusion.curves import Curves
from tenuto.report.diffusion.table import Row
from tenuto.report.kv.scores import KINDS, loss, shown
from tenuto.report.kv.table import label, ratio_texts, task_units
from tenuto.report.svg import Attributes, element

__all__ = ["kv_legend", "quality_plots", "ratio_plot"]

SMALL = Frame(width=310.0, height=250.0, left=48.0, right=12.0, top=12.0, bottom=44.0)
LINE, LABELS, LETTERS = 18.0, 220.0, 33
"""Height of a row of the dot plot, room for its labels, and how many letters fit into it."""

Rows = Sequence[Row[KVRun]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _KVPoint:
    method: int
    run: KVRun
    x: float
    score: Score
    title: str


def _here(rows: Rows, context: int) -> list[Row[KVRun]]:
    """The rows of one context length; the table says why others are withheld."""
    return [row for row in rows if row.run.context == context and not row.run.withheld]


def _methods(rows: Rows) -> dict[str, int]:
    """``{policy: its number}``: the same colour, shape and line in all plots."""
    return {
        policy: n
        for n, policy in enumerate(
            dict.fromkeys(row.run.policy for row in rows if not (row.baseline or row.run.withheld))
        )
    }


def kv_legend(rows: Rows) -> list[tuple[str, Markup]]:
    """Each policy with its symbol, drawn in a box of 16 by 16."""
    return [(policy, marker(number, 8, 8)) for policy, number in _methods(rows).items()]


def _point(row: Row[KVRun], task: str, methods: dict[str, int]) -> _KVPoint | str:
    """The point of a Run, or its name if it has none."""
    run, score = row.run, row.run.scores.get(task)
    if score is None or run.held is None:
        return f"{row.number} ({label(run)})"
    value, note = shown(score)
    title = f"{row.number}: {label(run)}\n{value} ({note})\nholds {units.percent(run.held)}\n{loss(score)}"
    return _KVPoint(method=methods[run.policy], run=run, x=100 * run.held, score=score, title=title.strip())


def _reference(score: Score, factor: float, up: Scale) -> list[Markup]:
    """The full cache: a dashed line in the band of its interval."""
    left, right = SMALL.across
    low, high = (up(v * factor) for v in score.interval)
    y = up(score.value * factor)
    band: Attributes = {"class": "band", "x": left, "y": high, "width": right - left, "height": low - high}
    value, note = shown(score)
    title = element("title", {}, f"full cache: {value} ({note})")
    line = element("path", {"class": "uncached", "d": f"M{left} {y:.1f}H{right}"})
    return [element("g", {}, title, element("rect", band), line)]


def _quality(points: Sequence[_KVPoint], reference: Score | None, title: str) -> Markup:
    kind = KINDS[points[0].score.unit]
    scores = [p.score for p in points] + ([reference] if reference else [])
    values = [kind.factor * v for s in scores for v in (s.value, *s.interval)]
    log = points[0].score.unit == "perplexity" and min(values) > 0
    across = Scale(0.0, 1.04 * max(100.0, *(p.x for p in points)), *SMALL.across)
    up = scale(values, SMALL.up, 0.02 * max(map(abs, values)) or 1.0, log=log)
    y_title = f"{kind.unit}{', lower is better' if kind.better == 'lower' else ''}"
    parts = across_axis(SMALL, across, "bytes held, % of the full cache", lambda tick: f"{tick:g}")
    parts += up_axis(SMALL, up, y_title)
    parts += _reference(reference, kind.factor, up) if reference else []
    places = [(p, across(p.x), up(kind.factor * p.score.value)) for p in points]
    for method, mine in groupby(sorted(places, key=lambda m: (m[0].method, m[1])), key=lambda m: m[0].method):
        path = "L".join(f"{x:.1f} {y:.1f}" for _, x, y in mine)
        parts.append(element("path", {"class": f"curve {colour(method)}", "d": f"M{path}"}))
    for p, x, y in places:
        low, high = p.score.interval
        parts.append(whiskers(p.method, x, y, None, (up(kind.factor * low), up(kind.factor * high))))
    parts += [element("g", {}, element("title", {}, p.title), marker(p.method, x, y, 4.5)) for p, x, y in places]
    told = "; ".join(p.title.replace("\n", ", ") for p in points)
    head: Attributes = {"viewBox": f"0 0 {SMALL.width:g} {SMALL.height:g}", "role": "img"}
    return element("svg", {"class": "plot", **head, "aria-label": f"{title} against bytes held. {told}."}, *parts)


def quality_plots(rows: Rows, context: int) -> list[Curves]:
    """The score of each task against the bytes held, at one context length: up is better but where it says lower."""
    methods, here = _methods(rows), _here(rows, context)
    plots = []
    for task in task_units([row.run for row in here]):
        found = [_point(row, task, methods) for row in here if not row.baseline]
        points = [point for point in found if isinstance(point, _KVPoint)]
        reference = next((row.run.scores.get(task) for row in here if row.baseline), None)
        svg = _quality(points, reference, task) if points else Markup("")
        plots.append(Curves(title=task, svg=svg, left_out=[why for why in found if isinstance(why, str)]))
    return plots


def _shortened(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _dots(timed: Sequence[tuple[Row[KVRun], Timing]], methods: dict[str, int], title: str) -> Markup:
    frame = Frame(width=560.0, height=54.0 + LINE * len(timed), left=LABELS, right=14.0, top=10.0, bottom=44.0)
    across = scale([1.0, *(ratio for _, timing in timed for ratio in timing.ratios)], frame.across, 0.2)
    parts = across_axis(frame, across, "times as fast as the full cache", lambda tick: f"{tick:g}×")
    (bottom, top), one = frame.up, across(1.0)
    parts.append(element("path", {"class": "uncached", "d": f"M{one:.1f} {top}V{bottom}"}))
    told = []
    for index, (row, timing) in enumerate(timed):
        y, method = top + LINE * (index + 0.5), methods[row.run.policy]
        if index and timed[index - 1][0].run.policy != row.run.policy:
            parts.append(element("path", {"class": "rule", "d": f"M0 {y - LINE / 2:.1f}H{frame.width}"}))
        ratios = timing.ratios
        x, name = across(median(ratios)), label(row.run)
        bar = whiskers(method, x, y, (across(min(ratios)), across(max(ratios))), None)
        text: Attributes = {"class": "tick", "x": LABELS - 8, "y": y + 4, "text-anchor": "end"}
        about = element("title", {}, f"{row.number}: {name}\n{', '.join(ratio_texts(timing))}")
        parts.append(element("g", {}, about, element("text", text, _shortened(name)), bar, marker(method, x, y, 4.5)))
        told.append(f"{name}: {', '.join(ratio_texts(timing))}")
    head: Attributes = {"viewBox": f"0 0 {frame.width:g} {frame.height:g}", "role": "img"}
    return element("svg", {"class": "plot", **head, "aria-label": f"{title}. {'; '.join(told)}."}, *parts)


def ratio_plot(rows: Rows, context: int, title: str, timing: Callable[[KVRun], Timing | None]) -> Curves:
    """How many times as fast as the full cache each Run is, at one context length: right of 1 is faster."""
    pairs = [(row, timing(row.run)) for row in _here(rows, context) if not row.baseline]
    timed = [(row, found) for row, found in pairs if found]
    left_out = [f"{row.number} ({label(row.run)})" for row, found in pairs if not found]
    svg = _dots(timed, _methods(rows), title) if timed else Markup("")
    return Curves(title=title, svg=svg, left_out=left_out)
