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
import re
import shlex
from collections.abc import Iterable
from itertools import pairwise

__all__ = [
    "AttachError",
    "CalibrationError",
    "InputError",
    "ModelError",
    "PolicyError",
    "StoreError",
    "TenutoError",
    "closest",
    "redact",
    "redacted_command",
]

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
PLACES = ("disk:", "host:", "device:")
"""Addresses that hold no secret."""
PLAIN = ("codec", "db", "foreign", "max", "protocol", "timeout")
"""Options of addresses whose values may be shown."""


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


def redact(text: str) -> str:
    """A text without the secrets of the addresses in it: user and password, and the values of options.

    Every message, warning, record and report that shows an address shows it so. What cannot be told from a password is
    left out too: all before the last ``@``, and ports that are no numbers.
    """
    starts = [found.start() for found in SCHEME.finditer(text)]
    if not starts:
        return _shown(text)
    return text[: starts[0]] + "".join(_shown(text[start:stop]) for start, stop in pairwise([*starts, len(text)]))


def redacted_command(words: Iterable[str]) -> str:
    """A command line as records show it: its words, quoted for a shell, without the secrets of addresses."""
    return shlex.join(redact(word) if "://" in word else word for word in words)


def _shown(part: str) -> str:
    if part.startswith(PLACES):
        return part
    begin = SCHEME.match(part)
    scheme, rest = (begin[0], part[begin.end() :]) if begin else ("", part)
    if "@" in rest and "?" in rest[: rest.rindex("@")]:
        return f"{scheme}..."  # in the password, or in the value of an option
    _, at, rest = rest.rpartition("@")
    place, mark, query = rest.partition("?") if scheme else (rest, "", "")
    host = re.split(r"[/#]", place, maxsplit=1)[0]
    if scheme and not at and not re.fullmatch(r"[^:]*(:\d*(\W.*)?)?|\[[0-9A-Fa-f:.]*\](:\d*(\W.*)?)?", host, re.DOTALL):
        place = f"{host.partition(':')[0]}:..."
    return scheme + ("...@" if at else "") + place + mark + "&".join(map(_option, query.split("&") if mark else []))


def _option(given: str) -> str:
    name, equals, value = given.partition("=")
    shown = value if name in PLAIN and re.fullmatch(r"[\w.+%-]*", value) else "..."
    return f"{name}={shown}" if equals and re.fullmatch(r"\w+", name) else "..."
