"""Profiles: what was fitted for a policy, and for which model.

A profile is a folder-less pair of files, ``NAME.safetensors`` (tensors, with everything else as JSON in its header), so
that one file travels. The model's *fingerprint* is taken over all weights, settings and adapters: a profile
made for another model, or for the same one after fine-tuning, is refused. Profiles of versions that sampled the weights
carry the first half of a fingerprint only, and serve where that half is right.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tenuto.errors import CalibrationError
from tenuto.home import home
from tenuto.identity import ModuleState, configuration, told
from tenuto.weights import digests, join

__all__ = ["Profile", "find", "fingerprint", "fits", "profile_folders"]

SAMPLES = 64
HALF = 16
ADAPTERS = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
FORMAT = "1"


_known: weakref.WeakKeyDictionary[torch.nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def fingerprint(module: torch.nn.Module) -> str:
    """Two halves with a dash: 16 hex digits over 64 evenly spaced values of every parameter, 32 over all that counts.

    That is every parameter and buffer, taken as bfloat16: a model in float32 and its bfloat16 cast have the same
    fingerprint, and so have half-precision weights however they are loaded; other weights have another. It is also the
    settings that differ from their defaults, and the strength and state of adapters. Costs about 1 s per 4 GB, once.

    Raises:
        AttachError: weights are not in memory, or of a kind whose bytes cannot be had.
    """
    look = ModuleState(module)
    told, known = _known.get(module, (None, ""))
    if told == (now := look.brief()):
        return known
    here = dict(look.named)
    half = hashlib.sha256(type(module).__name__.encode())
    for name, parameter in sorted(module.named_parameters()):
        half.update(f"{name}{tuple(parameter.shape)}".encode() + _sampled(here.get(name, parameter)))
    own = sorted((name, tensor) for name, tensor in look.named if name not in look.derived)
    whole = zip([name for name, _ in own], digests([tensor for _, tensor in own], rounded=True), strict=True)
    made = f"{half.hexdigest()[:16]}-{join(_settings(module), list(whole))}"
    _known[module] = now, made
    return made


def _sampled(parameter: torch.Tensor) -> bytes:
    values = parameter.detach().reshape(-1)
    index = torch.linspace(0, len(values) - 1, min(SAMPLES, len(values))).long().clamp(max=len(values) - 1)
    return values[index.to(values.device)].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()


def _settings(module: torch.nn.Module) -> str:
    """What was set when the module was made, other than the defaults, which later versions may add to; and adapters."""
    config: Any = vars(module).get("config")
    if config is not None:
        given = config.to_diff_dict()
    else:
        given = dict(vars(module).get("_internal_dict", {}))
        taken = inspect.signature(type(module).__init__).parameters
        given = {key: value for key, value in given.items() if key in taken and value != taken[key].default}
    adapters = [
        (name, {key: vars(part)[key] for key in ADAPTERS if key in vars(part)})
        for name, part in module.named_modules()
        if "_active_adapter" in vars(part)
    ]
    return configuration(given) + (told(adapters) if adapters else "")


def fits(told: str, mark: str) -> bool:
    """Whether a fingerprint that something carries is this one, or its first half, which older versions wrote."""
    return told == mark or (len(told) == HALF and mark.startswith(f"{told}-"))


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
        if not fits(self.fingerprint, mark):
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
            if header["policy"] == policy and fits(header["fingerprint"], mark) and same:
                profile = Profile.load(path)
                if accept(profile):
                    return profile
    return None
