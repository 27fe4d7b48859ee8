"""Header: what every record begins with, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Header"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What was measured, on what, and how to do it again.

    Attributes:
        family: which family's record this is: the name of its folder in the package, and of its part of a report.
        model: name or path of the model.
        fingerprint: of the model's weights.
        settings: what the benchmark was given: steps, samples, seed, batch and the like.
        versions: of tenuto, torch, the host library and Python.
        device: processor or accelerator, threads and dtype, in words.
        command: the command line that makes the record again; empty if none did.
    """

    family: str
    model: str
    fingerprint: str
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    command: str = ""
