"""The tables of a comparison, in Markdown: paired over examples, 95 % Student t intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from kv_peers.rows import METHODS
from tenuto.records.intervals import mean_interval

__all__ = ["Result", "tables"]

BASELINE = ("dynamic", "transformers")
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one row did on one example.

    Attributes:
        method, side, text, budget: the row; example: the name of the example.
        score, texts, bytes_held, prefill_s, decode_ms: what it answered, and at what cost; ``error``: what was raised
            instead, in the library's words.
    """

    method: str
    side: str
    text: str
    budget: str
    example: str
    score: float = 0.0
    texts: tuple[str, ...] = ()
    bytes_held: int = 0
    prefill_s: float = 0.0
    decode_ms: float | None = None
    error: str | None = None


Column = dict[str, Result]
"""One row's results by example; what raised is not there."""


def _columns(results: Iterable[Result]) -> dict[tuple[str, str], Column]:
    found: dict[tuple[str, str], Column] = {}
    for result in results:
        column = found.setdefault((result.method, result.side), {})
        if result.error is None:
            column[result.example] = result
    return found


def _mean(column: Column) -> float:
    return fmean(r.score for r in column.values())


def _score(column: Column) -> str:
    return f"{_mean(column):.3f}" if column else ""


def _held(column: Column) -> float:
    return fmean(r.bytes_held for r in column.values()) if column else 0.0


def _difference(ours: Column, other: Column) -> str:
    """Mean of ours minus the other's over the examples of both, with its interval."""
    values = [ours[name].score - other[name].score for name in ours if name in other]
    spread = mean_interval(values)
    return f"{fmean(values):+.3f} ({spread[0]:+.3f} to {spread[1]:+.3f})" if spread else ""


def _costs(column: Column, full: float) -> list[str]:
    """Bytes held, CPU seconds of the context, CPU milliseconds per token."""
    if not column:
        return ["", "", ""]
    held, decode = _held(column), [r.decode_ms for r in column.values() if r.decode_ms is not None]
    share = f" ({100 * held / full:.0f} %)" if full else ""
    return [
        f"{held / MIB:.2f}{share}",
        f"{median(r.prefill_s for r in column.values()):.2f}",
        f"{median(decode):.1f}" if decode else "",
    ]


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table, or nothing if it has no rows."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) if len(lines) > 2 else ""


def tables(results: Sequence[Result]) -> str:
    """Methods beside kvpress's; all others beside kvpress's best; scores by task; what raised."""
    columns = _columns(results)
    full = _held(columns.get(BASELINE, {}))
    parts = [_methods(columns, full), _others(columns, full), _by_task(columns), _errors(results)]
    return "\n\n".join(part for part in parts if part)


def _methods(columns: dict[tuple[str, str], Column], full: float) -> str:
    body = []
    for name in METHODS:
        theirs, ours = columns.get((name, "kvpress"), {}), columns.get((name, "tenuto"), {})
        if not (theirs or ours):
            continue
        costs = zip(_costs(theirs, full), _costs(ours, full), strict=True)
        paired = [f"`{name}`", str(len(theirs.keys() & ours.keys())), _score(theirs), _score(ours)]
        body.append([*paired, _difference(ours, theirs), *(cell for pair in costs for cell in pair)])
    costs_of = ("held MiB", "prefill s", "ms/token")
    head = ["method", "examples", "kvpress", "ours", "ours - kvpress (95 %)"]
    return _markdown([*head, *(f"{who} {cost}" for cost in costs_of for who in ("kvpress", "ours"))], body)


def _others(columns: dict[tuple[str, str], Column], full: float) -> str:
    """Compositions and transformers' caches, less kvpress's best row and its best of those that hold the least: its
    head-wise presses mask and free nothing."""
    theirs = {name: column for (name, side), column in columns.items() if side == "kvpress" and column}
    least = min(map(_held, theirs.values()), default=0.0)
    small = {name: column for name, column in theirs.items() if _held(column) <= least}
    bests = [max(some, key=lambda name: _mean(theirs[name]), default="") for some in (theirs, small)]
    body = []
    for (name, _), column in columns.items():
        if name in METHODS or not column:
            continue
        others = [columns.get(BASELINE, {}), *(theirs.get(best, {}) for best in bests)]
        differences = [_difference(column, other) for other in others]
        body.append([f"`{name}`", str(len(column)), _score(column), *differences, *_costs(column, full)])
    named = [f", `{best}`" if best else "" for best in bests]
    head = ["cache", "examples", "score", "- uncompressed (95 %)", f"- kvpress's best{named[0]}"]
    return _markdown([*head, f"- its best that frees memory{named[1]}", "held MiB", "prefill s", "ms/token"], body)


def _by_task(columns: dict[tuple[str, str], Column]) -> str:
    tasks = list(dict.fromkeys(name.split("/")[0] for column in columns.values() for name in column))
    body = []
    for (name, side), column in columns.items():
        by = [{n: r for n, r in column.items() if n.split("/")[0] == task} for task in tasks]
        body.append([f"`{name}`", side, *(f"{_score(part)} ({len(part)})" if part else "" for part in by)])
    return _markdown(["cache", "of", *tasks], body)


def _errors(results: Sequence[Result]) -> str:
    raised = [(r.method, r.side, r.error) for r in results if r.error]
    body = [[f"`{m}`", side, str(raised.count((m, side, e))), str(e)] for m, side, e in dict.fromkeys(raised)]
    return _markdown(["raised", "of", "times", "in its words"], body)
