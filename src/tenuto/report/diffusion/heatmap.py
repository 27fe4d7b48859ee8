"""Where the time went: denoising steps across, blocks down, one cell per block execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from tenuto.report import units
from tenuto.report.diffusion.check import DECISIONS
from tenuto.report.grid import Grid
from tenuto.report.svg import Attributes, element

__all__ = ["coverage", "decision_map", "fraction_map", "shares"]

LEFT, BOTTOM, TOP, PLOT = 36.0, 36.0, 8.0, 516.0


def shares(decisions: Sequence[Sequence[str]]) -> str:
    """How often each decision was taken, in words: ``compute 40 %, reuse 60 %``."""
    counts = Counter(word for row in decisions for word in row)
    return ", ".join(f"{word} {units.percent(counts[word] / counts.total(), 0)}" for word in DECISIONS if counts[word])


def coverage(cached: object) -> str:
    """Which part of a model is cached, in words; of a record that does not say so in numbers, nothing."""
    told = [_covered(name, one) for name, one in cached.items()] if isinstance(cached, dict) else []
    return "; ".join(filter(None, told))


def _covered(name: object, one: object) -> str:
    if not isinstance(one, dict):
        return ""
    blocks, share, left = one.get("blocks"), one.get("parameters"), one.get("left_out")
    if not (isinstance(blocks, dict) and isinstance(share, int | float) and 0 <= share <= 1):
        return ""
    lists = ", ".join(f"{count} {path}" for path, count in blocks.items())
    words = f"{name}: {lists} cached, {units.percent(share, 0)} of its parameters"
    return f"{words}, not {', '.join(map(str, left))}" if isinstance(left, list) and left else words


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _map(rows: Sequence[Sequence[str | float]], description: str) -> Markup:
    """``rows`` is ``[steps][blocks]``; equal neighbours in time become one rectangle, so that files stay small."""
    if not rows or not rows[0]:
        return Markup("")
    steps, blocks = len(rows), len(rows[0])
    width, height = PLOT / steps, min(18.0, max(5.0, 190.0 / blocks))
    grid = Grid(columns=steps, rows=blocks, left=LEFT, top=TOP, width=width, height=height)
    parts: list[Markup] = []
    for block in range(blocks):
        first = 0
        for value, same in groupby(row[block] for row in rows):
            last = first + len(list(same)) - 1
            place: Attributes = {
                "x": LEFT + first * width,
                "y": TOP + block * height,
                "width": (last - first + 1) * width,
                "height": height,
            }
            where = f"block {block}, {_steps(first, last)}"
            if isinstance(value, str):
                look, title = {"class": value}, f"{where}: {value}"
            else:
                parts.append(element("rect", {"class": "compute", **place}))
                look = {"class": "reuse", "fill-opacity": f"{value:.2f}"}
                title = f"{where}: not computed in {units.percent(value, 0)} of the calls"
            parts.append(element("rect", {**look, **place}, element("title", {}, title)))
            first = last + 1
    parts += [*grid.gaps(), *grid.column_numbers(), *grid.row_numbers()]
    parts += [grid.column_title("denoising step"), grid.row_title("block")]
    box = f"0 0 {LEFT + PLOT + 8:g} {grid.bottom + BOTTOM:.0f}"
    return element("svg", {"class": "heat", "viewBox": box, "role": "img", "aria-label": description}, *parts)


def decision_map(decisions: Sequence[Sequence[str]], policy: str) -> Markup:
    """``[steps][blocks]`` of "compute", "reuse", "forecast" of one generation; empty if there are none."""
    return _map(decisions, f"Decisions of {policy} in one generation, steps by blocks: {shares(decisions)}.")


def fraction_map(grid: Sequence[Sequence[float]], policy: str) -> Markup:
    """``[steps][blocks]`` of the fraction of calls not computed, over all generations; empty if there are none."""
    cells = [value for row in grid for value in row]
    mean = units.percent(sum(cells) / len(cells)) if cells else units.DASH
    return _map(grid, f"Fraction of calls that {policy} did not compute, steps by blocks: {mean} on average.")
