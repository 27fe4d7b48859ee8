"""The options of a policy as text, ``window=64,exact=true``, and back: one reading for every family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from tenuto.errors import PolicyError, closest

__all__ = ["KINDS", "read_option", "read_options", "write_options"]


def _read_bool(value: str) -> bool:
    return {"true": True, "false": False}[value.lower()]


def _read_float(value: str) -> float:
    number = float(value)
    if math.isnan(number):
        raise ValueError("not a number")
    return number


KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (_read_float, "a number"),
    bool: (_read_bool, "true or false"),
    str: (str, "text"),
}
"""What an option can be, how it is read, and what to call it."""


def read_option(label: str, value: str, kind: type) -> Any:
    """A value of a kind of :data:`KINDS`.

    Raises:
        PolicyError: it is none; the message begins with ``label``.
    """
    reader, allowed = KINDS[kind]
    try:
        return reader(value)
    except (ValueError, KeyError) as error:
        raise PolicyError(f"{label}={value} is not allowed: give {allowed}.") from error


def read_options(name: str, given: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Values by option from a text such as ``window=64,sinks=4``.

    Args:
        name: of the policy, for messages; kinds: what it takes.

    Raises:
        PolicyError: an option it does not have, one given twice or without a value, or a value of the wrong kind.
    """
    read = dict[str, Any]()
    for part in given.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in kinds:
            raise PolicyError(f"{name} has no option {key!r}.{closest(key, kinds)}")
        if not equals or key in read:
            raise PolicyError(f"{name}: write option {key!r} once, as {key}=VALUE; got {given!r}.")
        read[key] = read_option(f"{name}: {key}", value, kinds[key])
    return read


def write_options(name: str, policy: Any, without: str = "") -> str:
    """The text of a frozen dataclass: its name and, after a colon, the options that differ from their defaults.

    Args:
        without: a field that is no option.
    """
    changed = []
    for item in fields(policy):
        value = getattr(policy, item.name)
        if item.name != without and value != item.default:
            changed.append(f"{item.name}={str(value).lower() if isinstance(value, bool) else value}")
    return name + (":" + ",".join(changed) if changed else "")
