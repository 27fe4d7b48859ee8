"""From parsed JSON to a record: every value is held against the type that its field declares."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["build"]

Record = TypeVar("Record")


def build(kind: type[Record], raw: Any) -> Record:
    """A frozen dataclass of a JSON object.

    Raises:
        ValueError: no object, a field that is missing or not known, or a value that is not of its field's type.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"it is {_words(raw)}, not an object")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(raw) - set(known)):
        raise ValueError(f"it has unknown fields {unknown[:5]}")
    required = {n for n, item in known.items() if item.default is MISSING and item.default_factory is MISSING}
    if missing := sorted(required - set(raw)):
        raise ValueError(f"it has no {', '.join(missing[:5])}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, name) for name, value in raw.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """The value as its field has it: a list as a tuple, an object as a dataclass."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(inner, value, where)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        try:
            return build(hint, value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if origin in (dict, Mapping):
        _check(isinstance(value, dict), value, where, "an object")
        return {str(key): _value(inner[1], item, f"{where}[{key!r}]"[:80]) for key, item in value.items()}
    if origin in (list, tuple):
        return _items(origin, inner, value, where)
    return _plain(hint, value, where)


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    for kind in others[:-1]:
        try:
            return _value(kind, value, where)
        except ValueError:
            continue
    return _value(others[-1], value, where)


def _items(origin: Any, inner: tuple[Any, ...], value: Any, where: str) -> Any:
    _check(isinstance(value, list), value, where, "a list")
    if origin is tuple and inner[-1] is not Ellipsis:
        _check(len(value) == len(inner), value, where, f"a list of {len(inner)}")
        return tuple(_value(kind, item, where) for kind, item in zip(inner, value, strict=True))
    return origin(_value(inner[0], item, where) for item in value)


def _plain(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _check(number and abs(value) < 1e300 and not math.isnan(value), value, where, "a finite number")
    elif hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _check(whole and abs(value) < 2**63, value, where, "a whole number")
    elif hint is bool:
        _check(isinstance(value, bool), value, where, "true or false")
    else:
        _check(isinstance(value, hint), value, where, "text" if hint is str else hint.__name__)
    return value


def _check(good: bool, value: Any, where: str, allowed: str) -> None:
    if not good:
        raise ValueError(f"{where} is {_words(value)}, not {allowed}")


def _words(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
