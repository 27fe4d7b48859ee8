"""The models with a name: ``bundled:NAME`` wherever a model is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenuto.errors import ModelError, closest
from tenuto.zoo import smollm2

__all__ = ["MODELS", "PREFIX", "Named", "family_of", "find", "is_here", "pull", "resolve"]

PREFIX = "bundled:"
Family = Literal["diffusion", "kv"]
PACKAGED = Path(__file__).parents[1] / "bundled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model with a name: the family it is for, and the folder where it lies in the package, if it does."""

    family: Family
    about: str
    folder: str | None = None


MODELS = {
    "dit-fashion": Named(
        family="diffusion", about="class-conditional DiT, 28x28 pictures, comes with Tenuto", folder="dit_fashion"
    ),
    "wan-fashion": Named(
        family="diffusion",
        about="video: garments that move, clips of 8 frames of 32x32, comes with Tenuto",
        folder="wan_fashion",
    ),
    "smollm2": Named(family="kv", about="SmolLM2-135M-Instruct, Apache-2.0, 8,192 positions, 513 MiB"),
}


def named(name: str) -> Named:
    """The entry of a name, with or without the prefix.

    Raises:
        ModelError: there is none.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in MODELS:
        raise ModelError(f"There is no bundled model {bare!r}.{closest(bare, MODELS)}")
    return MODELS[bare]


def find(name: str) -> Path | None:
    """The folder of a named model; None if it must be pulled first.

    Raises:
        ModelError: no such name, or its files are damaged.
    """
    entry = named(name)
    return PACKAGED / entry.folder if entry.folder else smollm2.find()


def is_here(name: str) -> bool:
    """Whether a named model can be used without fetching."""
    return named(name).folder is not None or smollm2.at_hand()


def family_of(model: str) -> Family:
    """What a model generates, pictures or text, from its name or the files in its folder.

    Raises:
        ModelError: no such name, or neither kind of model is there.
    """
    if model.startswith(PREFIX):
        return named(model).family
    if (Path(model) / "model_index.json").is_file():
        return "diffusion"
    if (Path(model) / "config.json").is_file():
        return "kv"
    raise ModelError(
        f"There is no model at {model}: no model_index.json (images) or config.json (text) in that folder. "
        f"Give one of {', '.join(PREFIX + name for name in MODELS)}, or a folder."
    )


def pull(name: str) -> Path:
    """The folder of a named model, fetched if need be.

    Raises:
        ModelError: no such name, it cannot be fetched, or its files are damaged.
    """
    entry = named(name)
    return PACKAGED / entry.folder if entry.folder else smollm2.pull()


def resolve(model: str, family: Family) -> Path:
    """The folder that ``bundled:NAME`` or a path names.

    Raises:
        ModelError: no such name, a model of another family, or one that must be pulled first.
    """
    if not model.startswith(PREFIX):
        return Path(model)
    entry = named(model)
    if entry.family != family:
        fitting = next(name for name, other in MODELS.items() if other.family == family)
        raise ModelError(
            f"{model} is a model for {entry.family}, not for {family}. Give for example {PREFIX}{fitting}."
        )
    place = find(model)
    if place is None:
        name = model.removeprefix(PREFIX)
        raise ModelError(f"{model} is not here yet. Fetch it once with: tenuto models pull {name}")
    return place
