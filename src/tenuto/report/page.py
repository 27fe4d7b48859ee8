"""Put the parts together and write the page: to a file beside the target, then renamed over it."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from tenuto.errors import InputError
from tenuto.records.attention import read_attention_runs
from tenuto.records.diffusion import read_runs, run_files
from tenuto.records.kv import read_kv_runs
from tenuto.records.prompt import read_prompt_runs
from tenuto.records.reuse import read_reuse_runs
from tenuto.records.shards import read_shards_runs
from tenuto.report.attention.page import attention_part
from tenuto.report.diffusion.page import diffusion_part
from tenuto.report.kv.page import kv_part
from tenuto.report.prompt.page import prompt_part
from tenuto.report.reuse.page import reuse_part
from tenuto.report.shards.page import shards_part

__all__ = ["FILE_NAME", "write_report"]

FILE_NAME = "tenuto-report.html"
FAMILIES: tuple[tuple[Any, Any], ...] = (
    (read_kv_runs, kv_part),
    (read_prompt_runs, prompt_part),
    (read_shards_runs, shards_part),
    (read_attention_runs, attention_part),
    (read_reuse_runs, reuse_part),
)
"""What reads the records of each family but diffusion from a folder, and what makes its part of the page of them."""


def _breakable(text: str) -> Markup:
    """Policy text that may be broken after a colon or a comma."""
    return Markup(",<wbr>").join(Markup(":<wbr>").join(part.split(":")) for part in text.split(","))


def _text(name: str) -> str:
    return files("tenuto.report").joinpath(name).read_text(encoding="utf-8")


def _parts(folder: Path) -> list[dict[str, Any]]:
    parts = [diffusion_part(read_runs(folder), folder)] if run_files(folder) else []
    parts += [part(runs) for read, part in FAMILIES if (runs := read(folder))]
    if not parts:
        raise InputError(
            f"{folder} holds no Run records (*.json). Run `tenuto bench` diffusion, kv, prompt, moe, attention or "
            f"store with --out {folder} first."
        )
    return parts


def _render(folder: Path) -> str:
    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    parts = _parts(folder)
    level = 1 + len(parts)  # of the headings: below the page's, or below the part's
    for part in parts:
        html = environment.get_template(f"{part['id']}/page.html").render(part={**part, "level": level})
        part["html"] = Markup(html)
    return environment.get_template("template.html").render(parts=parts)


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
    """Write one self-contained HTML page about the records in a folder.

    Args:
        folder: holds the records (``*.json``) and the pictures they name. Each family whose records are there, told
            by the beginning of their names (``kv-``, ``prompt-``, ``moe-``, ``attention-``, ``store-``, none for
            images), is a part of the page.
        out: the file to write; ``folder/tenuto-report.html`` if None. An existing file is replaced.

    Returns:
        The path written.

    Raises:
        InputError: the folder holds no Runs, a record or a picture is damaged, or the file cannot be written. Nothing
            is left half-written.
    """
    target = folder / FILE_NAME if out is None else out
    text = _render(folder)
    if target.is_dir():
        raise InputError(f"{target} is a folder. Give the file to write, for example {target / FILE_NAME}.")
    try:
        _replace(target, text)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{target} cannot be written ({reason}). Give a file in an existing folder you may write to."
        ) from error
    return target
