"""From Runs to the points of the speed-quality plots, and what could not be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tenuto.records.diffusion import Run
from tenuto.report import units
from tenuto.report.axes import marker
from tenuto.report.diffusion.plots import Point, scatter
from tenuto.report.diffusion.table import IDENTICAL, Row

__all__ = ["Curves", "curves", "legend"]

PLAIN = "fewer_steps"
"""The method that is a baseline itself: drawn grey, so that the eye compares with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """A plot with its title; empty ``svg`` if no Run has both numbers. ``left_out`` names Runs without them."""

    title: str
    svg: Markup
    left_out: list[str]


def _method_numbers(rows: Sequence[Row[Run]]) -> dict[str, int]:
    names = dict.fromkeys(row.run.method for row in rows if not row.baseline)
    coloured = [name for name in names if name != PLAIN]
    return {name: -1 if name == PLAIN else coloured.index(name) for name in names}


def _point(row: Row[Run], method: int, wall_clock: bool) -> Point | str:
    """The point of a Run, or why it has none."""
    run = row.run
    speed = run.flops_speedup if not wall_clock else None if run.withheld else run.speedup
    if speed is None or run.psnr is None:
        return f"{row.number} ({run.policy}: {'no speed-up' if speed is None else 'no PSNR'})"
    if run.psnr >= IDENTICAL:  # infinitely far up: on the axis it would flatten all others
        return f"{row.number} ({run.policy}: identical to the uncached output, at {units.times(speed)})"
    return Point(
        number=row.number,
        method=method,
        title=f"{row.number}: {run.policy}\n{units.times(speed)}, {run.psnr:.2f} dB",
        x=speed,
        y=run.psnr,
        x_range=run.speedup_range if wall_clock else None,
        y_range=run.psnr_interval,
    )


def curves(rows: Sequence[Row[Run]], *, wall_clock: bool) -> Curves:
    """PSNR against the speed-up by wall clock, or by executed operations."""
    numbers = _method_numbers(rows)
    found = [_point(row, numbers[row.run.method], wall_clock) for row in rows if not row.baseline]
    points = [point for point in found if isinstance(point, Point)]
    title = "Speed-up by wall clock" if wall_clock else "Speed-up by executed FLOPs"
    told = "; ".join(point.title.replace("\n", ", ") for point in points)
    svg = scatter(points, title, f"{title} against PSNR. {told}.") if points else Markup("")
    return Curves(title=title, svg=svg, left_out=[why for why in found if isinstance(why, str)])


def legend(rows: Sequence[Row[Run]]) -> list[tuple[str, Markup]]:
    """Each method with its symbol, drawn in a box of 16 by 16."""
    return [(name, marker(number, 8, 8)) for name, number in _method_numbers(rows).items()]
