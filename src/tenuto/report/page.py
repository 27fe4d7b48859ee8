"""Put the parts together and write the page: to a file beside the target, then renamed over it."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from tenuto.errors import InputError
from tenuto.eval.kvrun import KVRun, read_kv_runs
from tenuto.eval.promptrun import PromptRun, read_prompt_runs
from tenuto.eval.run import Run, read_runs, run_files
from tenuto.report.images_page import images_part
from tenuto.report.kv_page import kv_part
from tenuto.report.prompt_page import prompt_part

__all__ = ["FILE_NAME", "write_report"]

FILE_NAME = "tenuto-report.html"


def _breakable(text: str) -> Markup:
    """Policy text that may be broken after a colon or a comma."""
    return Markup(",<wbr>").join(Markup(":<wbr>").join(part.split(":")) for part in text.split(","))


def _text(name: str) -> str:
    return files("tenuto.report").joinpath(name).read_text(encoding="utf-8")


def _records(folder: Path) -> tuple[list[Run], list[KVRun], list[PromptRun]]:
    kv_runs, prompt_runs = read_kv_runs(folder), read_prompt_runs(folder)
    others = run_files(folder)
    if not (kv_runs or prompt_runs or others):
        raise InputError(
            f"{folder} holds no Run records (*.json). Run `tenuto bench diffusion`, `tenuto bench kv` or `tenuto bench "
            f"prompt` with --out {folder} first."
        )
    return (read_runs(folder) if others else []), kv_runs, prompt_runs


def _render(folder: Path) -> str:
    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    runs, kv_runs, prompt_runs = _records(folder)
    parts = [images_part(runs, folder)] if runs else []
    parts += [kv_part(kv_runs)] if kv_runs else []
    parts += [prompt_part(prompt_runs)] if prompt_runs else []
    level = 1 + len(parts)  # of the headings: below the page's, or below the part's
    for part in parts:
        html = environment.get_template(f"{part['id']}.html").render(part={**part, "level": level})
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
        folder: holds the records (``*.json``) and the pictures they name. Records of images, of KV caches
            (``kv-*.json``) and of prompts (``prompt-*.json``) become parts of the page.
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
