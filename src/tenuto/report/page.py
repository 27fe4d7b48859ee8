"""Put the parts together and write the page: to a file beside the target, then renamed over it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from tenuto.errors import InputError
from tenuto.eval.run import Run, read_runs
from tenuto.report.check import check_run
from tenuto.report.curves import curves, legend
from tenuto.report.facts import common_facts, differences, headlines
from tenuto.report.heatmap import decision_map, fraction_map, shares
from tenuto.report.pictures import Picture, load_picture
from tenuto.report.table import COLUMNS, Row, table_rows

__all__ = ["FILE_NAME", "write_report"]

FILE_NAME = "tenuto-report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exhibit:
    """What the page shows of one policy besides its row."""

    row: Row
    samples: Picture
    difference: Picture
    decisions: Markup
    shares: str
    fractions: Markup


def _exhibit(row: Row, folder: Path) -> _Exhibit:
    run = row.run
    return _Exhibit(
        row=row,
        samples=load_picture(folder, run, "grid"),
        difference=load_picture(folder, run, "difference"),
        decisions=decision_map(run.decisions, run.policy),
        shares=shares(run.decisions),
        fractions=fraction_map(run.grid, run.policy),
    )


def _breakable(text: str) -> Markup:
    """Policy text that may be broken after a colon or a comma."""
    return Markup(",<wbr>").join(Markup(":<wbr>").join(part.split(":")) for part in text.split(","))


def _part(name: str) -> str:
    return files("tenuto.report").joinpath(name).read_text(encoding="utf-8")


def _render(runs: list[Run], folder: Path) -> str:
    environment = Environment(
        loader=FunctionLoader(_part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    rows = table_rows(runs)
    baseline = next((row for row in rows if row.baseline), None)
    exhibits = [_exhibit(row, folder) for row in rows if not row.baseline]
    without = Picture(missing="The folder holds no baseline Run.")
    return environment.get_template("template.html").render(
        facts=common_facts(runs),
        differences=differences(runs),
        commands=[command for command in dict.fromkeys(run.command for run in runs) if command],
        headlines=headlines(rows),
        columns=COLUMNS,
        baselines=[row for row in rows if row.baseline],
        methods=[row for row in rows if not row.baseline],
        plots=[curves(rows, wall_clock=True), curves(rows, wall_clock=False)],
        legend=legend(rows),
        uncached=load_picture(folder, baseline.run, "grid") if baseline else without,
        exhibits=exhibits,
        shadowed=[row for row in rows if row.run.shadow],
        unmapped=[shown.row for shown in exhibits if not (shown.decisions or shown.fractions)],
        records=json.dumps([run.row() for run in runs], indent=1, ensure_ascii=False),
    )


def _replace(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError:
        if temporary.is_file():
            temporary.unlink()
        raise


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write one self-contained HTML page about the Runs in a folder.

    Args:
        folder: holds the records (``*.json``) and the pictures they name.
        out: the file to write; ``folder/tenuto-report.html`` if None. An existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: the folder holds no Runs, a record or a picture is damaged, or the file cannot be written. Nothing
            is left half-written.
    """
    runs = read_runs(folder)
    for run in runs:
        check_run(run)
    target = folder / FILE_NAME if out is None else out
    if target.is_dir():
        raise InputError(f"{target} is a folder. Give the file to write, for example {target / FILE_NAME}.")
    text = _render(runs, folder)
    try:
        _replace(target, text)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{target} cannot be written ({reason}). Give a file in an existing folder you may write to."
        ) from error
    return target
