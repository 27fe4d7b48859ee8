"""The head of the page: what all Runs share, where they differ, and the figures to look at first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenuto.records.diffusion import Run
from tenuto.records.header import Header
from tenuto.report import units
from tenuto.report.diffusion.table import BASELINE, IDENTICAL, Row

__all__ = ["Difference", "Headline", "SharedFact", "common_facts", "differences", "headlines", "shared_head"]

CLOSE = 30.0
"""PSNR in dB from which differences are hard to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFact:
    """A name and a value that every Run of the page shares, in one of the groups Measured, Settings, Versions."""

    group: str
    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A name whose value is not the same in all Runs: each value with the Runs that have it."""

    name: str
    values: list[tuple[str, list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One figure with what it means and, if it belongs to one Run, that Run's policy."""

    title: str
    value: str
    note: str
    policy: str = ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _properties(run: Header) -> dict[tuple[str, str], str]:
    """``{(group, name): value}`` of one Run."""
    measured = {"model": run.model, "weights": run.fingerprint, "family": run.family, "device": run.device}
    groups: dict[str, dict[str, Any]] = {"Measured": measured, "Settings": run.settings, "Versions": run.versions}
    return {(g, name): _text(value) or units.DASH for g, pairs in groups.items() for name, value in pairs.items()}


def _gathered(runs: Sequence[tuple[str, Header]]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """``{(group, name): {value: [Runs]}}`` over all names any Run has."""
    properties = [(name, _properties(run)) for name, run in runs]
    gathered: dict[tuple[str, str], dict[str, list[str]]] = {key: {} for _, mine in properties for key in mine}
    for name, mine in properties:
        for key, values in gathered.items():
            values.setdefault(mine.get(key, units.DASH), []).append(name)
    return gathered


def common_facts(runs: Sequence[tuple[str, Header]]) -> list[SharedFact]:
    """What every Run, given with its name on the page, shares: model, weights, family, device, settings, versions."""
    shared = {key: next(iter(values)) for key, values in _gathered(runs).items() if len(values) == 1}
    return [SharedFact(group=group, name=name, value=value) for (group, name), value in shared.items()]


def differences(runs: Sequence[tuple[str, Header]]) -> list[Difference]:
    """What the Runs do not share: such rows are comparable only with that in mind."""
    found = {name: values for (_, name), values in _gathered(runs).items() if len(values) > 1}
    return [Difference(name=name, values=list(values.items())) for name, values in found.items()]


def shared_head(runs: Sequence[tuple[str, Header]]) -> dict[str, Any]:
    """What every part's template begins with, of Runs with their names on the page: facts, differences, commands."""
    return {
        "facts": common_facts(runs),
        "differences": differences(runs),
        "commands": [command for command in dict.fromkeys(run.command for _, run in runs) if command],
    }


def _fastest(timed: Sequence[Run], title: str) -> list[Headline]:
    if not timed:
        return []
    best = max(timed, key=lambda run: run.speedup or 0.0)
    quality = f"at {best.psnr:.1f}{units.NBSP}dB" if best.psnr is not None else "quality not measured"
    return [Headline(title=title, value=units.times(best.speedup or 0.0), note=quality, policy=best.policy)]


def headlines(rows: Sequence[Row[Run]]) -> list[Headline]:
    """How many policies there are, the fastest, the fastest above 30 dB, and the closest of those that are faster."""
    methods = [row.run for row in rows if not row.baseline]
    timed = [run for run in methods if run.speedup is not None and not run.withheld]
    without = len(methods) - len(timed)
    against = "against the uncached model" if len(methods) < len(rows) else f"without a baseline Run ({BASELINE!r})"
    note = f"{against}; {without} of them without a speed-up" if without else against
    figures = [Headline(title="Policies compared", value=str(len(methods)), note=note)]
    figures += _fastest(timed, "Fastest by wall clock")
    figures += _fastest([run for run in timed if (run.psnr or 0.0) >= CLOSE], f"Fastest at {CLOSE:g} dB or more")
    faster = [run for run in timed if (run.speedup or 0.0) > 1 and run.psnr is not None]
    if faster:
        best = max(faster, key=lambda run: run.psnr or 0.0)
        value = "identical" if (best.psnr or 0.0) >= IDENTICAL else f"{best.psnr:.1f}{units.NBSP}dB"
        speed = units.times(best.speedup or 0.0)
        note = f"at {speed}; of those faster than no cache"
        figures.append(Headline(title="Closest to uncached", value=value, note=note, policy=best.policy))
    return figures
