"""Curves of trained attentions over context length, and recall by distance as a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tenuto.records.attention import AttentionRun, SeedGroup
from tenuto.report import units
from tenuto.report.axes import Frame, across_axis, colour, marker, scale, up_axis, whiskers
from tenuto.report.diffusion.curves import Curves
from tenuto.report.svg import Attributes, element

__all__ = ["bits_plots", "cost_plots", "recall_map"]

FRAME = Frame(width=560.0, height=340.0, left=54.0, right=14.0, top=12.0, bottom=46.0)
LABELS, CELL, HIGH = 170.0, 66.0, 20.0
MEBI = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """A place on a curve, the interval of its height, and what it says in words."""

    x: float
    y: float
    interval: tuple[float, float] | None
    told: str


def _curves(found: Mapping[int, Sequence[_Point]], across_title: str, up_title: str, name: str, log: bool) -> Markup:
    """One line per attention, by number; contexts are spread logarithmically, heights too if ``log``."""
    points = [point for mine in found.values() for point in mine]
    if not points:
        return Markup("")
    across = scale([p.x for p in points], FRAME.across, 0.2, log=True)
    up = scale([v for p in points for v in (p.y, *(p.interval or ()))], FRAME.up, 0.01, log=log)
    parts = across_axis(FRAME, across, across_title, lambda tick: f"{tick:,.0f}")
    parts += up_axis(FRAME, up, up_title)
    for number, mine in found.items():
        path = "L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in mine)
        if mine:
            parts.append(element("path", {"class": f"curve {colour(number)}", "d": f"M{path}"}))
        for p in mine:
            x, y = across(p.x), up(p.y)
            bar = (up(p.interval[0]), up(p.interval[1])) if p.interval else None
            drawn = [element("title", {}, p.told), whiskers(number, x, y, None, bar), marker(number, x, y, 4.5)]
            parts.append(element("g", {}, *drawn))
    head: Attributes = {"viewBox": f"0 0 {FRAME.width:g} {FRAME.height:g}", "role": "img"}
    return element(
        "svg", {"class": "plot", **head, "aria-label": f"{name}: " + "; ".join(p.told for p in points)}, *parts
    )


def _bits(group: SeedGroup, contexts: Sequence[int], last: bool) -> list[_Point]:
    points = []
    for context in contexts:

        def measure(run: AttentionRun, context: int = context) -> float | None:
            bits = run.bits_at(context)
            return None if bits is None else bits.last if last else bits.value

        mean = group.mean(measure)
        if mean:
            value, interval = mean
            spread = f" ({units.span(*(f'{end:.3f}' for end in interval))})" if interval else ""
            told = f"{group.attention}, {context:,} tokens: {value:.3f} bits per byte{spread}"
            points.append(_Point(x=context, y=value, interval=interval, told=told))
    return points


def bits_plots(groups: Sequence[SeedGroup]) -> list[Curves]:
    """Bits per byte over the length of a pass, of all its tokens and of the last quarter."""
    contexts = sorted({bits.context for group in groups for run in group.runs for bits in run.bits})
    plots = []
    for title, last in (("All tokens", False), ("The last quarter of each pass", True)):
        found = {number: _bits(group, contexts, last) for number, group in enumerate(groups)}
        svg = _curves(found, "context, tokens", "bits per byte, lower is better", title, log=False)
        plots.append(Curves(title=title, svg=svg, left_out=[]))
    return plots


def cost_plots(groups: Sequence[SeedGroup]) -> list[Curves]:
    """Bytes on the compute tier and time per decoded token, over context; empty if nothing was timed."""
    held: dict[int, list[_Point]] = {}
    time: dict[int, list[_Point]] = {}
    for number, group in enumerate(groups):
        for at in group.decode:
            place = f"{group.attention}, {at.context:,} tokens"
            device = at.held.get("device", 0)
            below = [f"{units.size(size)} on {tier}" for tier, size in at.held.items() if tier != "device" and size]
            told = f"{place}: {', '.join([units.size(device), *below])}"
            held.setdefault(number, []).append(_Point(x=at.context, y=device / MEBI, interval=None, told=told))
            ends = 1000 * min(at.seconds), 1000 * max(at.seconds)
            told = f"{place}: {units.milliseconds(at.milliseconds)}"
            time.setdefault(number, []).append(_Point(x=at.context, y=at.milliseconds, interval=ends, told=told))
    return [
        Curves(title=title, svg=_curves(found, "context, tokens", unit, title, log=True), left_out=[])
        for title, unit, found in (
            ("Bytes held on the compute tier", "MiB", held),
            ("Time per decoded token", "milliseconds", time),
        )
    ]


def recall_map(groups: Sequence[SeedGroup], length: int) -> Markup:
    """Attentions down, numbered as in the table, distance across, the share of right answers in each cell; empty if
    nothing was asked."""
    edges = [0, 32]
    while edges[-1] * 2 < length:
        edges.append(edges[-1] * 2)
    spans = list(zip(edges, [*edges[1:], length], strict=True))
    parts: list[Markup] = []
    told: list[str] = []
    for row, group in enumerate(groups):
        y = 8.0 + row * HIGH
        place: Attributes = {"class": "tick", "x": LABELS - 8, "y": y + 14, "text-anchor": "end"}
        parts.append(element("text", place, f"{row + 1}  {_short(group.attention)}"))
        for column, (low, high) in enumerate(spans):
            mean = group.mean(lambda run, low=low, high=high: run.recalled(length, low, high))  # type: ignore[misc]
            if mean is None:
                continue
            parts += _cell(mean[0], LABELS + column * CELL, y, f"{group.attention}, {low} to {high - 1} tokens away")
            told.append(f"{group.attention}, {low} to {high - 1}: {units.percent(mean[0], 0)}")
    if not told:
        return Markup("")
    bottom = 8.0 + len(groups) * HIGH
    for column, (low, high) in enumerate(spans):
        x = LABELS + (column + 0.5) * CELL
        parts.append(
            element("text", {"class": "tick", "x": x, "y": bottom + 15, "text-anchor": "middle"}, f"{low}-{high - 1}")
        )
    width = LABELS + len(spans) * CELL
    axis: Attributes = {"class": "axis", "x": (LABELS + width) / 2, "y": bottom + 34, "text-anchor": "middle"}
    parts.append(element("text", axis, "distance, tokens"))
    size = f"max-width: {1.25 * width:.0f}px"
    head: Attributes = {"viewBox": f"0 0 {width:g} {bottom + 42:g}", "role": "img", "style": size}
    return element("svg", {"class": "heat", **head, "aria-label": f"Recall by distance. {'; '.join(told)}."}, *parts)


def _short(attention: str) -> str:
    """Names without options; the number before it is that of the table."""
    return "+".join(part.partition(":")[0] for part in attention.split("+"))


def _cell(share: float, x: float, y: float, where: str) -> list[Markup]:
    place: Attributes = {"x": x, "y": y, "width": CELL - 2, "height": HIGH - 2}
    text: Attributes = {"class": "tick", "x": x + CELL / 2 - 1, "y": y + 13, "text-anchor": "middle"}
    title = element("title", {}, f"{where}: {units.percent(share)} right")
    return [
        element("rect", {"class": "compute", **place}),
        element("rect", {"class": "reuse", "fill-opacity": f"{share:.2f}", **place}, title),
        element("text", text, f"{100 * share:.0f}"),
    ]
