"""Scales, axes and whiskers that every plot of the page is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tenuto.report.svg import Attributes, element, ticks

__all__ = ["COLOURS", "Frame", "Scale", "across_axis", "colour", "marker", "scale", "up_axis", "whiskers"]

COLOURS = 8
SHAPES = ("circle", "square", "triangle", "diamond", "wedge", "hexagon")
OUTLINES = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1.3), (1.25, 0.95), (-1.25, 0.95)),
    "diamond": ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    "wedge": ((0, 1.3), (1.25, -0.95), (-1.25, -0.95)),
    "hexagon": ((-1.2, 0), (-0.6, -1.1), (0.6, -1.1), (1.2, 0), (0.6, 1.1), (-0.6, 1.1)),
}

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from ``low`` to ``high`` at places from ``start`` to ``end``; ``log``: equal factors are equally far."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """About ``about`` round numbers on the scale; on a long logarithmic one 1, 2 and 5 times powers of ten."""
        if not self.log or self.high / self.low < 4:
            return ticks(self.low, self.high, about)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [m * 10.0**p for p in powers for m in (1, 2, 5) if self.low <= m * 10.0**p <= self.high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The size of a plot and its margins, in units of its own drawing."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def across(self) -> tuple[float, float]:
        """Where the horizontal axis starts and ends."""
        return self.left, self.width - self.right

    @property
    def up(self) -> tuple[float, float]:
        """Where the vertical axis starts, below, and ends, above."""
        return self.height - self.bottom, self.top


def scale(values: Sequence[float], places: tuple[float, float], least: float, *, log: bool = False) -> Scale:
    """A scale over all values with a margin.

    Args:
        values: what must lie on it, at least one; above 0 if ``log``.
        places: where it starts and ends.
        least: how much it spans at least, in the unit of the values.
    """
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** 0.07, 1 + least / low / 2)
        return Scale(low / margin, high * margin, *places, log=True)
    room = max(0.07 * (high - low), (least - (high - low)) / 2)
    return Scale(low - room, high + room, *places)


def across_axis(frame: Frame, across: Scale, title: str, told: Callable[[float], str], about: int = 6) -> list[Markup]:
    """Rules at round numbers, the numbers below as ``told`` writes them, and the title."""
    (left, right), (bottom, top) = frame.across, frame.up
    parts: list[Markup] = []
    for tick in across.ticks(about):
        x = across(tick)
        parts.append(element("path", {"class": "rule", "d": f"M{x:.1f} {top}V{bottom}"}))
        text: Attributes = {"class": "tick", "x": x, "y": bottom + 17, "text-anchor": "middle"}
        parts.append(element("text", text, told(tick)))
    place: Attributes = {"x": (left + right) / 2, "y": frame.height - 8}
    return [*parts, element("text", {"class": "axis", "text-anchor": "middle", **place}, title)]


def up_axis(frame: Frame, up: Scale, title: str, about: int = 6) -> list[Markup]:
    """Rules at round numbers, the numbers at the left, and the title."""
    (left, right), (bottom, top) = frame.across, frame.up
    parts: list[Markup] = []
    for tick in up.ticks(about):
        y = up(tick)
        parts.append(element("path", {"class": "rule", "d": f"M{left} {y:.1f}H{right}"}))
        text: Attributes = {"class": "tick", "x": left - 7, "y": y + 4, "text-anchor": "end"}
        parts.append(element("text", text, f"{tick:g}"))
    turned = f"translate(13 {(top + bottom) / 2:.0f}) rotate(-90)"
    return [*parts, element("text", {"class": "axis", "text-anchor": "middle", "transform": turned}, title)]


def colour(method: int) -> str:
    """The class that gives a method its colour; -1 is the plain baseline, grey."""
    return f"m{method % COLOURS}" if method >= 0 else "plain"


def marker(method: int, x: float, y: float, radius: float = 5.0) -> Markup:
    """The symbol of a method at a place: colours and shapes repeat with different periods, so 24 methods differ."""
    look = f"mark {colour(method)}"
    shape = SHAPES[method % len(SHAPES)] if method >= 0 else "circle"
    if shape == "circle":
        return element("circle", {"class": look, "cx": x, "cy": y, "r": radius})
    corners = " ".join(f"{x + 0.9 * radius * a:.1f},{y + 0.9 * radius * b:.1f}" for a, b in OUTLINES[shape])
    return element("polygon", {"class": look, "points": corners})


def whiskers(method: int, x: float, y: float, x_places: Range | None, y_places: Range | None) -> Markup:
    """Thin bars through a point, between places already scaled; empty if there is no range."""
    d = f"M{x_places[0]:.1f} {y:.1f}H{x_places[1]:.1f}" if x_places else ""
    d += f"M{x:.1f} {y_places[0]:.1f}V{y_places[1]:.1f}" if y_places else ""
    return element("path", {"class": f"whisker {colour(method)}", "d": d}) if d else Markup("")
