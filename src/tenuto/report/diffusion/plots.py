"""Speed against quality: one point per Run, one line per method, numbered as in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from tenuto.report.axes import Frame, Scale, across_axis, colour, marker, scale, up_axis, whiskers
from tenuto.report.svg import Attributes, element

__all__ = ["FRAME", "Point", "scatter"]

FRAME = Frame(width=560.0, height=380.0, left=50.0, right=14.0, top=14.0, bottom=46.0)


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


def _no_cache(across: Scale) -> list[Markup]:
    if not across.low <= 1 <= across.high:
        return []
    bottom, top = FRAME.up
    line = element("path", {"class": "uncached", "d": f"M{across(1):.1f} {top}V{bottom}"})
    return [line, element("text", {"class": "tick", "x": across(1) + 5, "y": bottom - 6}, "no cache")]


def _label_place(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """The free place around a point that is farthest from everything drawn so far."""
    (left, right), (_, top) = FRAME.across, FRAME.up
    around = ((11, -8), (-11, -8), (11, 11), (-11, 11), (0, -12), (0, 15), (16, 2), (-16, 2))
    inside = [(x + a, y + b) for a, b in around if left + 6 < x + a < right - 4 and y + b > top + 4]
    others = [place for place in taken if place != (x, y)]

    def room(place: tuple[float, float]) -> float:
        return min([abs(place[0] - a) + 1.4 * abs(place[1] - b) for a, b in others] + [26.0])

    return max(inside or [(x + 11, y - 8)], key=room)


def _whiskers(point: Point, across: Scale, up: Scale) -> Markup:
    x_places = (across(point.x_range[0]), across(point.x_range[1])) if point.x_range else None
    y_places = (up(point.y_range[0]), up(point.y_range[1])) if point.y_range else None
    return whiskers(point.method, across(point.x), up(point.y), x_places, y_places)


def scatter(points: Sequence[Point], x_title: str, description: str) -> Markup:
    """The plot as inline SVG.

    Args:
        points: at least one.
        x_title: the text below the horizontal axis.
        description: what a screen reader says.
    """
    across = scale([1.0] + [v for p in points for v in (p.x, *(p.x_range or ()))], FRAME.across, 0.2)
    up = scale([v for p in points for v in (p.y, *(p.y_range or ()))], FRAME.up, 2.0)
    parts = across_axis(FRAME, across, x_title, lambda tick: f"{tick:g}×")
    parts += up_axis(FRAME, up, "PSNR to the uncached output, dB")
    parts += _no_cache(across)
    ordered = sorted(points, key=lambda p: (p.method, p.x, p.y))
    for method, mine in groupby(ordered, key=lambda p: p.method):
        path = "L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in mine)
        parts.append(element("path", {"class": f"curve {colour(method)}", "d": f"M{path}"}))
    parts += [_whiskers(point, across, up) for point in points]
    taken = [(across(p.x), up(p.y)) for p in points]
    for point in ordered:
        x, y = across(point.x), up(point.y)
        place = _label_place(x, y, taken)
        taken.append(place)
        text: Attributes = {"class": "number", "x": place[0], "y": place[1] + 3.5, "text-anchor": "middle"}
        title = element("title", {}, point.title)
        parts.append(element("g", {}, title, marker(point.method, x, y), element("text", text, str(point.number))))
    head: Attributes = {"viewBox": f"0 0 {FRAME.width:g} {FRAME.height:g}", "role": "img", "aria-label": description}
    return element("svg", {"class": "plot", **head}, *parts)
