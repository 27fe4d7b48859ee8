"""Which processor or accelerator runs a model, and which versions of which libraries."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from tenuto.errors import InputError

__all__ = ["device_words", "pick_device", "versions"]


def pick_device(given: str) -> torch.device:
    """The device a text names; "auto" is an NVIDIA GPU if there is one, else the processor.

    Raises:
        InputError: it does not exist here.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if given == "auto" else given
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"device={given} cannot be used here ({reason}). Give auto, cpu or cuda.") from error


def device_words(device: torch.device, dtype: torch.dtype) -> str:
    """Processor or accelerator, threads and dtype, in words."""
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    return f"{device.type.upper()} ({platform.machine()}), {torch.get_num_threads()} threads, {kind}"


def versions(*libraries: str) -> dict[str, str]:
    """Of tenuto, torch, Python and some more installed libraries."""
    from tenuto import __version__

    told = {name: importlib.metadata.version(name) for name in libraries}
    return {"tenuto": __version__, "torch": torch.__version__, **told, "python": platform.python_version()}
