"""Speed against quality: one point per Run, one line per method, numbered as in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from tenuto.report.svg import Attributes, element, ticks

__all__ = ["Point", "marker", "scatter"]

WIDTH, HEIGHT = 560.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 14.0, 46.0
COLOURS = 8
SHAPES = ("circle", "square", "triangle", "diamond", "wedge", "hexagon")
OUTLINES = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1.3), (1.25, 0.95), (-1.25, 0.95)),
    "diamond": ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    "wedge": ((0, 1.3), (1.25, -0.95), (-1.25, -0.95)),
    "hexagon": ((-1.2, 0), (-0.6, -1.1), (0.6, -1.1), (1.2, 0), (0.6, 1.1), (-0.6, 1.1)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A Run in the plot: ``x`` a speed-up, ``y`` PSNR in dB, with their ranges where known.

    ``method`` is the number of its method (colour, shape, line); -1 is the plain baseline, drawn grey and dashed.
    """

    number: int
    method: int
    title: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _scale(values: Sequence[float], start: float, end: float, least: float) -> _Scale:
    low, high = min(values), max(values)
    margin = max(0.07 * (high - low), (least - (high - low)) / 2)
    return _Scale(low - margin, high + margin, start, end)


def marker(method: int, x: float, y: float, radius: float = 5.0) -> Markup:
    """The symbol of a method at a place: colours and shapes repeat with different periods, so 24 methods differ."""
    colour = f"mark {f'm{method % COLOURS}' if method >= 0 else 'plain'}"
    shape = SHAPES[method % len(SHAPES)] if method >= 0 else "circle"
    if shape == "circle":
        return element("circle", {"class": colour, "cx": x, "cy": y, "r": radius})
    corners = " ".join(f"{x + 0.9 * radius * a:.1f},{y + 0.9 * radius * b:.1f}" for a, b in OUTLINES[shape])
    return element("polygon", {"class": colour, "points": corners})


def _axes(across: _Scale, up: _Scale, x_title: str) -> list[Markup]:
    parts: list[Markup] = []
    for tick in ticks(across.low, across.high, 6):
        x = across(tick)
        parts.append(element("path", {"class": "rule", "d": f"M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"}))
        text: Attributes = {"class": "tick", "x": x, "y": HEIGHT - BOTTOM + 17, "text-anchor": "middle"}
        parts.append(element("text", text, f"{tick:g}×"))
    for tick in ticks(up.low, up.high, 6):
        y = up(tick)
        parts.append(element("path", {"class": "rule", "d": f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"}))
        text = {"class": "tick", "x": LEFT - 7, "y": y + 4, "text-anchor": "end"}
        parts.append(element("text", text, f"{tick:g}"))
    middle: Attributes = {"class": "axis", "text-anchor": "middle"}
    parts.append(element("text", {**middle, "x": (LEFT + WIDTH - RIGHT) / 2, "y": HEIGHT - 8}, x_title))
    place = f"translate(13 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)"
    parts.append(element("text", {**middle, "transform": place}, "PSNR to the uncached output, dB"))
    if across.low <= 1 <= across.high:
        parts.append(element("path", {"class": "uncached", "d": f"M{across(1):.1f} {TOP}V{HEIGHT - BOTTOM}"}))
        parts.append(element("text", {"class": "tick", "x": across(1) + 5, "y": HEIGHT - BOTTOM - 6}, "no cache"))
    return parts


def _label_place(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """The free place around a point that is farthest from everything drawn so far."""
    around = ((11, -8), (-11, -8), (11, 11), (-11, 11), (0, -12), (0, 15), (16, 2), (-16, 2))
    inside = [(x + a, y + b) for a, b in around if LEFT + 6 < x + a < WIDTH - RIGHT - 4 and y + b > TOP + 4]
    others = [place for place in taken if place != (x, y)]

    def room(place: tuple[float, float]) -> float:
        return min([abs(place[0] - a) + 1.4 * abs(place[1] - b) for a, b in others] + [26.0])

    return max(inside or [(x + 11, y - 8)], key=room)


def _whiskers(point: Point, across: _Scale, up: _Scale) -> Markup:
    x, y, d = across(point.x), up(point.y), ""
    if point.x_range:
        d += f"M{across(point.x_range[0]):.1f} {y:.1f}H{across(point.x_range[1]):.1f}"
    if point.y_range:
        d += f"M{x:.1f} {up(point.y_range[0]):.1f}V{up(point.y_range[1]):.1f}"
    colour = f"m{point.method % COLOURS}" if point.method >= 0 else "plain"
    return element("path", {"class": f"whisker {colour}", "d": d}) if d else Markup("")


def scatter(points: Sequence[Point], x_title: str, description: str) -> Markup:
    """The plot as inline SVG.

    Args:
        points: at least one.
        x_title: the text below the horizontal axis.
        description: what a screen reader says.
    """
    xs = [1.0] + [v for p in points for v in (p.x, *(p.x_range or ()))]
    ys = [v for p in points for v in (p.y, *(p.y_range or ()))]
    across = _scale(xs, LEFT, WIDTH - RIGHT, 0.2)
    up = _scale(ys, HEIGHT - BOTTOM, TOP, 2.0)
    parts = _axes(across, up, x_title)
    ordered = sorted(points, key=lambda p: (p.method, p.x, p.y))
    for method, mine in groupby(ordered, key=lambda p: p.method):
        path = "L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in mine)
        colour = f"m{method % COLOURS}" if method >= 0 else "plain"
        parts.append(element("path", {"class": f"curve {colour}", "d": f"M{path}"}))
    parts += [_whiskers(point, across, up) for point in points]
    taken = [(across(p.x), up(p.y)) for p in points]
    for point in ordered:
        x, y = across(point.x), up(point.y)
        place = _label_place(x, y, taken)
        taken.append(place)
        text: Attributes = {"class": "number", "x": place[0], "y": place[1] + 3.5, "text-anchor": "middle"}
        title = element("title", {}, point.title)
        parts.append(element("g", {}, title, marker(point.method, x, y), element("text", text, str(point.number))))
    head: Attributes = {"viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}", "role": "img", "aria-label": description}
    return element("svg", {"class": "plot", **head}, *parts)
