"""Where the time went: denoising steps across, blocks down, one cell per block execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from tenuto.report import units
from tenuto.report.check import DECISIONS
from tenuto.report.svg import Attributes, element, ticks

__all__ = ["decision_map", "fraction_map", "shares"]

LEFT, BOTTOM, TOP, PLOT = 36.0, 36.0, 8.0, 516.0


def shares(decisions: Sequence[Sequence[str]]) -> str:
    """How often each decision was taken, in words: ``compute 40 %, reuse 60 %``."""
    counts = Counter(word for row in decisions for word in row)
    return ", ".join(f"{word} {units.percent(counts[word] / counts.total(), 0)}" for word in DECISIONS if counts[word])


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _axes(steps: int, blocks: int, width: float, height: float) -> list[Markup]:
    bottom = TOP + blocks * height
    lines = "".join(f"M{LEFT + i * width:.2f} {TOP}V{bottom:.2f}" for i in range(1, steps))
    lines += "".join(f"M{LEFT} {TOP + i * height:.2f}H{LEFT + steps * width:.2f}" for i in range(1, blocks))
    parts = [element("path", {"class": "gap", "d": lines})] if lines else []
    for step in sorted({int(t) for t in ticks(0, steps - 1, 8)}):
        place: Attributes = {
            "class": "tick",
            "x": LEFT + (step + 0.5) * width,
            "y": bottom + 13,
            "text-anchor": "middle",
        }
        parts.append(element("text", place, str(step)))
    for block in sorted({int(t) for t in ticks(0, blocks - 1, max(1, min(6, int(blocks * height / 16))))}):
        place = {"class": "tick", "x": LEFT - 5, "y": TOP + (block + 0.5) * height + 4, "text-anchor": "end"}
        parts.append(element("text", place, str(block)))
    middle: Attributes = {"class": "axis", "text-anchor": "middle"}
    parts.append(element("text", {**middle, "x": LEFT + steps * width / 2, "y": bottom + 30}, "denoising step"))
    turned = f"translate(10 {TOP + blocks * height / 2:.0f}) rotate(-90)"
    return [*parts, element("text", {**middle, "transform": turned}, "block")]


def _map(rows: Sequence[Sequence[str | float]], description: str) -> Markup:
    """``rows`` is ``[steps][blocks]``; equal neighbours in time become one rectangle, so that files stay small."""
    if not rows or not rows[0]:
        return Markup("")
    steps, blocks = len(rows), len(rows[0])
    width, height = PLOT / steps, min(18.0, max(5.0, 190.0 / blocks))
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
    parts += _axes(steps, blocks, width, height)
    box = f"0 0 {LEFT + PLOT + 8:g} {TOP + blocks * height + BOTTOM:.0f}"
    return element("svg", {"class": "heat", "viewBox": box, "role": "img", "aria-label": description}, *parts)


def decision_map(decisions: Sequence[Sequence[str]], policy: str) -> Markup:
    """``[steps][blocks]`` of "compute", "reuse", "forecast" of one generation; empty if there are none."""
    return _map(decisions, f"Decisions of {policy} in one generation, steps by blocks: {shares(decisions)}.")


def fraction_map(grid: Sequence[Sequence[float]], policy: str) -> Markup:
    """``[steps][blocks]`` of the fraction of calls not computed, over all generations; empty if there are none."""
    cells = [value for row in grid for value in row]
    mean = units.percent(sum(cells) / len(cells)) if cells else units.DASH
    return _map(grid, f"Fraction of calls that {policy} did not compute, steps by blocks: {mean} on average.")
