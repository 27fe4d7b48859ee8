"""What a KV policy kept: the share of the context per layer and KV head, and where in the context it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from tenuto.report import units
from tenuto.report.grid import Grid
from tenuto.report.svg import Attributes, element

__all__ = ["kept_map", "shade"]

LEFT, BOTTOM, TOP, WIDTH, BETWEEN = 42.0, 36.0, 8.0, 408.0, 22.0
LEVELS = 20
"""Shades: cells of one shade are one path, so that files stay small."""


def shade(share: float) -> float:
    """How opaque a cell is that keeps this share: its square root, so that small budgets are told apart."""
    return round(LEVELS * math.sqrt(share)) / LEVELS


def _cells(rows: Sequence[Sequence[float]], grid: Grid) -> list[Markup]:
    """``rows`` is ``[layers][columns]``; equal neighbours are one rectangle, equal shades one path."""
    paths: dict[float, str] = {}
    for layer, row in enumerate(rows):
        first, y = 0, grid.top + layer * grid.height
        for level, same in groupby(map(shade, row)):
            wide = len(list(same))
            x, across = grid.left + first * grid.width, wide * grid.width
            paths[level] = paths.get(level, "") + f"M{x:.1f} {y:.1f}h{across:.1f}v{grid.height:.1f}h-{across:.1f}z"
            first += wide
    place: Attributes = {
        "x": grid.left,
        "y": grid.top,
        "width": grid.right - grid.left,
        "height": grid.bottom - grid.top,
    }
    parts = [element("rect", {"class": "compute", **place}, element("title", {}, "none kept"))]
    for level, d in sorted(paths.items()):
        if level:
            title = element("title", {}, f"about {units.percent(level * level, 0)} kept")
            parts.append(element("path", {"class": "reuse", "fill-opacity": f"{level:.2f}", "d": d}, title))
    return parts


def _mean(rows: Sequence[Sequence[float]]) -> str:
    cells = [value for row in rows for value in row]
    return units.percent(sum(cells) / len(cells))


def kept_map(heads: Sequence[Sequence[float]], survivors: Sequence[Sequence[float]], name: str) -> Markup:
    """Both maps side by side with the layers from top to bottom; empty if nothing was recorded.

    Args:
        heads: ``[layers][kv_heads]`` share of the tokens kept.
        survivors: ``[layers][bins]`` share of the tokens in each part of the context that some head kept.
        name: policy, budget and context, for a screen reader.
    """
    left, parts, told, bottom = LEFT, list[Markup](), list[str](), 0.0
    tall = max(len(heads), len(survivors))
    height = min(14.0, max(5.0, 190.0 / max(tall, 1)))
    if heads and heads[0]:
        count = len(heads[0])
        room = WIDTH - LEFT if not (survivors and survivors[0]) else min(150.0, max(60.0, 10.0 * count))
        grid = Grid(columns=count, rows=len(heads), left=left, top=TOP, width=room / count, height=height)
        about = max(1, int(room / 24))
        parts += [*_cells(heads, grid), *grid.gaps(), *grid.column_numbers(about), grid.column_title("KV head")]
        parts += [*grid.row_numbers(), grid.row_title("layer")]
        left, bottom = grid.right + BETWEEN, grid.bottom
        told.append(f"{_mean(heads)} of the context per layer and KV head on average")
    if survivors and survivors[0]:
        count = len(survivors[0])
        width = (WIDTH - left) / count
        grid = Grid(columns=count, rows=len(survivors), left=left, top=TOP, width=width, height=height)
        parts += [*_cells(survivors, grid), *grid.gaps(), grid.column_title("position in the context, %")]
        parts += [grid.below(left + (WIDTH - left) * p / 100, str(p)) for p in (0, 25, 50, 75, 100)]
        if not told:
            parts += [*grid.row_numbers(), grid.row_title("layer")]
        bottom = max(bottom, grid.bottom)
        told.append(f"{_mean(survivors)} of the tokens in some head")
    if not parts:
        return Markup("")
    head: Attributes = {"viewBox": f"0 0 {WIDTH + 12:g} {bottom + BOTTOM:.0f}", "role": "img"}
    return element("svg", {"class": "heat", **head, "aria-label": f"{name} kept {', '.join(told)}."}, *parts)
