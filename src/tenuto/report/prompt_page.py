"""One page about shortened prompts: their text coloured by span and size, and quality against ratio."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from tenuto.errors import InputError
from tenuto.report.axes import Frame, across_axis, colour, marker, scale, up_axis, whiskers
from tenuto.report.svg import Attributes, element

__all__ = ["Mark", "coloured", "quality", "write_prompt_page"]

FRAME = Frame(width=440.0, height=300.0, left=52.0, right=14.0, top=12.0, bottom=44.0)
SHOWN = 1500
"""Pieces of a text that are shown."""

STYLE = """
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; padding: 14px 18px; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; font: 13px/1.7 ui-monospace, Menlo, Consolas, monospace; }
.tokens span { border-radius: 3px; }
.dropped { color: var(--soft); text-decoration: line-through; opacity: 0.6; }
.pair { display: flex; flex-wrap: wrap; gap: 20px; align-items: center; }
svg { width: 440px; max-width: 100%; }
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of the plot: a way to shorten prompts, its ratio, nats per token beyond the whole prompt, an interval."""

    way: str
    ratio: float
    extra: float
    interval: tuple[float, float] | None = None


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


def quality(marks: Sequence[Mark], title: str) -> Markup:
    """Nats beyond the whole prompt against ratio, one line per way, with a legend; empty without marks."""
    if not marks:
        return Markup("")
    names = {way: number for number, way in enumerate(dict.fromkeys(mark.way for mark in marks))}
    across = scale([mark.ratio for mark in marks], FRAME.across, 0.2)
    up = scale([v for mark in marks for v in (mark.extra, *(mark.interval or ()))] + [0.0], FRAME.up, 0.1)
    parts = across_axis(FRAME, across, "entries over tokens", lambda tick: f"{tick:g}")
    parts += up_axis(FRAME, up, "nats beyond the whole prompt")
    for way, number in names.items():
        mine = sorted((mark for mark in marks if mark.way == way), key=lambda mark: mark.ratio)
        path = "L".join(f"{across(mark.ratio):.1f} {up(mark.extra):.1f}" for mark in mine)
        parts.append(element("path", {"class": f"curve {colour(number)}", "d": f"M{path}"}))
        for mark in mine:
            x, y = across(mark.ratio), up(mark.extra)
            bars = (up(mark.interval[0]), up(mark.interval[1])) if mark.interval else None
            told = element("title", {}, f"{way}, {mark.ratio:g}: {mark.extra:+.3f} nats per token")
            parts.append(element("g", {}, told, whiskers(number, x, y, None, bars), marker(number, x, y)))
    head: Attributes = {"viewBox": f"0 0 {FRAME.width:g} {FRAME.height:g}", "role": "img", "aria-label": title}
    symbols = [
        element(
            "div", {}, element("svg", {"width": 16, "height": 16, "style": "width: 16px"}, marker(n, 8, 8)), f" {way}"
        )
        for way, n in names.items()
    ]
    return element(
        "div", {"class": "pair"}, element("svg", {"class": "plot", **head}, *parts), element("div", {}, *symbols)
    )


def write_prompt_page(
    out: Path, texts: Mapping[str, Sequence[tuple[str, int]]], marks: Mapping[str, Sequence[Mark]]
) -> Path:
    """Write one self-contained HTML page.

    Args:
        out: the file; an existing one is replaced.
        texts: by title, the pieces of one text with the sizes of their spans; marks: by title, the points of one plot.

    Raises:
        InputError: the file cannot be written.
    """
    style = files("tenuto.report").joinpath("style.css").read_text(encoding="utf-8")
    body = [element("h1", {}, "Tenuto ", element("span", {}, "prompts"))]
    for title in dict.fromkeys([*marks, *texts]):
        body += [element("h2", {"class": "section"}, title), quality(marks.get(title, ()), title)]
        if title in texts:
            lead = "One example. A shaded piece is one entry, the darker the more tokens; plain ones are single tokens."
            body += [element("p", {"class": "soft"}, lead), coloured(texts[title])]
    head = element("meta", {"charset": "utf-8"}) + element("title", {}, "Tenuto prompts")
    head += Markup("<style>{}</style>").format(Markup(style + STYLE))
    page = Markup("<!doctype html>\n") + element(
        "html", {"lang": "en"}, element("head", {}, head), element("body", {}, *body)
    )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(str(page).replace("</meta>", ""), encoding="utf-8")
        os.replace(temporary, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror or error}). Give another --out.") from error
    return out
