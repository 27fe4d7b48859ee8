"""The folder of a retrofitted model: what ``save_pretrained`` wrote, in one file or several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, GenerationConfig

from tenuto.errors import ModelError

__all__ = ["fill", "read_config", "read_generation"]

WEIGHTS = "model.safetensors"


def read_config(folder: Path) -> Any:
    """The configuration.

    Raises:
        ModelError: there is none, it cannot be read, or an adapter lies beside it.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json. Give one that save_pretrained wrote.")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter beside the model. Save the adapter to a folder of its own, load the model, and "
            "put the adapter on it with PEFT."
        )
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read ({_line(error)}). Save the model again.") from error


def read_generation(folder: Path) -> GenerationConfig | None:
    """End tokens, penalties and how else it writes; None: nothing was saved.

    Raises:
        ModelError: the file cannot be read.
    """
    if not (folder / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        said = f"{folder}/generation_config.json cannot be read ({_line(error)}). Save the model again."
        raise ModelError(said) from error


def fill(model: Any, folder: Path, text: str) -> None:
    """Load the weights into a model that was retrofitted with ``text``.

    Raises:
        ModelError: files are missing, damaged or do not fit.
    """
    weights: dict[str, torch.Tensor] = {}
    try:
        for name in _files(folder):
            weights |= load_file(folder / name)
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{folder}: the weights cannot be loaded ({_line(error)}). Save the model again.") from error
    tied = set(model.all_tied_weights_keys)
    if lost := [name for name in missing if name not in tied] + list(unexpected):
        raise ModelError(
            f"{folder}: weights do not fit {text}: {', '.join(lost[:3])}. Train it again, or restore them."
        )
    model.tie_weights()


def _files(folder: Path) -> list[str]:
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return [WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged ({_line(error)}). Save the model again.") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ModelError(f"{index} names files outside its folder. Save the model again.")
    return names


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
