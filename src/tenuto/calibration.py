"""Profiles: what was fitted for a policy, and for which model.

A profile is a folder-less pair of files, ``NAME.safetensors`` (tensors, with everything else as JSON in its header), so
that one file travels. The model's *fingerprint* is taken over sampled weights: a profile made for another model, or for
the same one after fine-tuning, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tenuto.errors import CalibrationError
from tenuto.home import home

__all__ = ["Profile", "find", "fingerprint", "profile_folders"]

SAMPLES = 64
FORMAT = "1"
CHANNELS = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


def fingerprint(module: torch.nn.Module) -> str:
    """16 hex digits over the names, shapes and 64 evenly spaced values (as bfloat16) of every parameter, wherever
    accelerate keeps them, and over weights that quantisation has packed.

    A model in float32 and its bfloat16 cast have the same fingerprint, and so have half-precision weights however they
    are loaded; other weights have another.

    Raises:
        CalibrationError: some weights are nowhere (on the meta device), or of a kind that cannot be read.
    """
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, parameter in sorted(module.named_parameters()):
        try:
            values = _held(module, name, parameter.detach()).reshape(-1)
            index = torch.linspace(0, len(values) - 1, min(SAMPLES, len(values))).long().clamp(max=len(values) - 1)
            sample = values[index.to(values.device)].to("cpu", torch.bfloat16).view(torch.int16)
        except (RuntimeError, NotImplementedError, TypeError, KeyError) as error:
            raise CalibrationError(
                f"The weights of {type(module).__name__} cannot be read at {name} ({type(parameter).__name__} on "
                f"{parameter.device}), so no profile can be told to fit. Load the model without offloading to meta or "
                "quantisation, or use a policy that needs no profile."
            ) from error
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    for name, packed in _packed(module):
        digest.update(name.encode() + packed)
    return digest.hexdigest()[:16]


def _held(module: torch.nn.Module, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's values: of one that accelerate has offloaded, what its hook will put in place."""
    if not parameter.is_meta:
        return parameter
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):  # the hook is on the module itself, or on one it is in
        hook: Any = getattr(module.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            weights = getattr(each, "weights_map", None)
            if weights is not None:
                held: torch.Tensor = weights[".".join(parts[depth:])]
                return held
    return parameter


def _packed(module: torch.nn.Module) -> Iterator[tuple[str, bytes]]:
    """Weights that are no parameters: those of torch's dynamically quantised layers, whole."""
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None) if isinstance(part, torch.ao.nn.quantized.dynamic.Linear) else None
        if callable(weight):
            values = weight()
            scale = values.q_per_channel_scales() if values.qscheme() in CHANNELS else torch.tensor(values.q_scale())
            yield name, values.int_repr().numpy().tobytes() + scale.numpy().tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was fitted.

    Attributes:
        policy: name of the policy it is for; fingerprint: of the model's denoiser.
        settings: what it was fitted on: steps, guidance, sampler, seeds, seconds.
        numbers: fitted numbers, JSON-ready; tensors: fitted tensors by name.
    """

    policy: str
    fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def check(self, policy: str, mark: str) -> None:
        """Refuse another policy or another model.

        Raises:
            CalibrationError: naming both.
        """
        if self.policy != policy:
            raise CalibrationError(f"The profile is for policy {self.policy!r}, not {policy!r}. Calibrate {policy!r}.")
        if self.fingerprint != mark:
            raise CalibrationError(
                f"The profile was made for a model with fingerprint {self.fingerprint}; this model has {mark}. "
                f"Calibrate again: tenuto calibrate {policy}."
            )

    def save(self, path: Path) -> Path:
        """Write one ``.safetensors`` file, beside and renamed."""
        path = Path(path)
        header = {
            key: json.dumps(value)
            for key, value in (
                ("format", FORMAT),
                ("policy", self.policy),
                ("fingerprint", self.fingerprint),
                ("settings", self.settings),
                ("numbers", self.numbers),
            )
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()} or {"empty": torch.zeros(1)}
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, metadata=header)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise CalibrationError(
                f"The profile cannot be written to {path}: {error}. Choose another place."
            ) from error
        return path

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile.

        Raises:
            CalibrationError: the file is missing, damaged, or not a profile.
        """
        header = _header(Path(path))
        tensors = load_file(path)
        tensors.pop("empty", None)
        return cls(**{key: header[key] for key in ("policy", "fingerprint", "settings", "numbers")}, tensors=tensors)


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CalibrationError(f"There is no profile at {path}. Make one with `tenuto calibrate`.")
    try:
        with safe_open(path, framework="pt") as file:
            header = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise CalibrationError(f"{path} is damaged or not a profile ({error}). Remove it. Calibrate again.") from error
    if header.get("format") != FORMAT or not {"policy", "fingerprint", "settings", "numbers"} <= set(header):
        raise CalibrationError(f"{path} is not a Tenuto profile of format {FORMAT}. Remove it. Calibrate again.")
    return header


def profile_folders() -> Iterator[Path]:
    """Where profiles are looked for: your own at :func:`tenuto.home.home`, then the package's."""
    yield home() / "profiles"
    yield from sorted((Path(__file__).parent / "bundled").glob("*/profiles"))


def find(
    policy: str,
    mark: str,
    settings: dict[str, Any] | None = None,
    accept: Callable[[Profile], bool] = lambda profile: True,
) -> Profile | None:
    """The profile of a policy for a model, None if there is none.

    Args:
        policy: name of the policy; mark: the model's fingerprint.
        settings: if given, every setting that the profile also has must be equal.
        accept: says whether a profile that fits will serve; the first that does is returned.
    """
    for folder in profile_folders():
        for path in sorted(folder.glob(f"{policy}*.safetensors")):
            header = _header(path)
            same = all(header["settings"].get(key, value) == value for key, value in (settings or {}).items())
            if (header["policy"], header["fingerprint"]) == (policy, mark) and same:
                profile = Profile.load(path)
                if accept(profile):
                    return profile
    return None
