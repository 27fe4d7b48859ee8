"""Every error Tenuto raises on purpose.

    TenutoError
    ├── PolicyError            an unknown policy, or an option it does not take
    ├── AttachError            the model has no blocks to cache, or is attached already
    ├── CalibrationError       a profile is missing, broken, or made for another model
    ├── ModelError             a model folder is missing or its files are damaged
    ├── StoreError             a page of a store is damaged, or could not be stored
    └── InputError             a number or a path that cannot be used

A message says what was given, what is allowed and what to do. The command line prints it as one line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AttachError",
    "CalibrationError",
    "InputError",
    "ModelError",
    "PolicyError",
    "StoreError",
    "TenutoError",
    "closest",
]


class TenutoError(Exception):
    """The root of the tree: ``except TenutoError`` catches all of it and nothing else."""


class PolicyError(TenutoError):
    """An unknown policy, or an option it does not take."""


class AttachError(TenutoError):
    """The model has no blocks to cache, is attached already, or cannot be cached as it is."""


class CalibrationError(TenutoError):
    """A calibration profile is missing, broken, or was made for another model."""


class ModelError(TenutoError):
    """A model folder is missing or its files are damaged."""


class StoreError(TenutoError):
    """A page of a store is damaged, or could not be stored."""


class InputError(TenutoError):
    """A number or a path that cannot be used."""


def closest(given: str, allowed: Iterable[str]) -> str:
    """The tail of a message about a closed name: a suggestion if one is near, and all that is allowed."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Allowed: {', '.join(names) or 'none'}."
