"""Put the parts together and write the page: to a file beside the target, then renamed over it."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from tenuto.errors import InputError
from tenuto.records.folder import Records, read_folder
from tenuto.report.attention.check import check_attention
from tenuto.report.attention.page import attention_part
from tenuto.report.diffusion.check import check_diffusion
from tenuto.report.diffusion.page import diffusion_part
from tenuto.report.kv.check import check_kv
from tenuto.report.kv.page import kv_part
from tenuto.report.prompt.check import check_prompt
from tenuto.report.prompt.page import prompt_part
from tenuto.report.reuse.check import check_reuse
from tenuto.report.reuse.page import reuse_part
from tenuto.report.shards.check import check_shards
from tenuto.report.shards.page import shards_part

__all__ = ["FILE_NAME", "Report", "write_report"]

FILE_NAME = "tenuto-report.html"
FAMILIES: dict[str, tuple[Any, Any]] = {
    "diffusion": (check_diffusion, diffusion_part),
    "kv": (check_kv, kv_part),
    "attention": (check_attention, attention_part),
    "prompt": (check_prompt, prompt_part),
    "reuse": (check_reuse, reuse_part),
    "shards": (check_shards, shards_part),
}
"""What checks a record of each family, and what makes its part of the page of all of them; in the page's order."""


class Report(NamedTuple):
    """A report that was written.

    Attributes:
        path: of the page.
        refused: a line for everything in the folder that could not be shown; the page has them too.
    """

    path: Path
    refused: tuple[str, ...]


def _breakable(text: str) -> Markup:
    """Policy text that may be broken after a colon or a comma."""
    return Markup(",<wbr>").join(Markup(":<wbr>").join(part.split(":")) for part in text.split(","))


def _text(name: str) -> str:
    return files("tenuto.report").joinpath(name).read_text(encoding="utf-8")


def _checked(records: Records) -> None:
    """Leave out records whose values cannot be drawn, with a line for each."""
    for family, (check, _) in FAMILIES.items():
        good = []
        for run in records.by_family.pop(family, []):
            try:
                check(run)
            except InputError as error:
                records.refused.append(str(error))
            else:
                good.append(run)
        if good:
            records.by_family[family] = good


def _parts(folder: Path, records: Records) -> list[dict[str, Any]]:
    """The part of every family that has records; one whose records do not fit together is a line."""
    parts = []
    for family, (_, part) in FAMILIES.items():
        if family not in records.by_family:
            continue
        try:
            parts.append(part(records.by_family[family], folder))
        except InputError as error:
            records.refused.append(str(error))
    if parts:
        return parts
    if records.refused:
        more = f" (and {len(records.refused) - 1} more like it)" if len(records.refused) > 1 else ""
        raise InputError(f"{records.refused[0]}{more}")
    raise InputError(
        f"{folder} holds no records (*.json). Run `tenuto bench` {', '.join(FAMILIES)} with --out {folder} first."
    )


def _render(parts: list[dict[str, Any]], refused: list[str]) -> str:
    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    level = 1 + len(parts)  # of the headings: below the page's, or below the part's
    for part in parts:
        html = environment.get_template(f"{part['id']}/page.html").render(part={**part, "level": level})
        part["html"] = Markup(html)
    return environment.get_template("template.html").render(parts=parts, refused=refused)


def _replace(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError:
        if temporary.is_file():
            temporary.unlink()
        raise


def write_report(folder: Path, out: Path | None = None) -> Report:
    """Write one self-contained HTML page about the records in a folder.

    Args:
        folder: holds the records (``*.json``) and the pictures they name. Each family that has records there is a part
            of the page. What cannot be read or drawn is left out, with a line that says why.
        out: the file to write; ``folder/tenuto-report.html`` if None. An existing file is replaced.

    Raises:
        InputError: the folder holds no record that can be drawn, or the file cannot be written. Nothing is left
            half-written.
    """
    target = folder / FILE_NAME if out is None else out
    records = read_folder(folder)
    _checked(records)
    text = _render(_parts(folder, records), records.refused)
    if target.is_dir():
        raise InputError(f"{target} is a folder. Give the file to write, for example {target / FILE_NAME}.")
    try:
        _replace(target, text)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{target} cannot be written ({reason}). Give a file in an existing folder you may write to."
        ) from error
    return Report(target, tuple(records.refused))
