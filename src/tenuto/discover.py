"""Finds the methods of a family, and reads one from text. It is told which family, and knows none.

Methods are the files in the family's ``policies/``, one each, and the entry points of the group ``tenuto.<family>``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from tenuto.errors import PolicyError, closest
from tenuto.method import Method
from tenuto.options import read_options

__all__ = ["PLUS", "Source", "family_of", "installed", "methods", "own", "parse", "resolved"]

PLUS = "+"
Source = tuple[type[Method], str]
"""The class of a method, and where it was found."""


def family_of(base: type[Method]) -> str:
    """The name of the family whose contract a base class is, ``kv`` for one in ``tenuto.kv.policy``."""
    return base.__module__.split(".")[1]


_OWN: dict[str, tuple[Source, ...]] = {}
"""What the folders of families hold, by family: they do not change while a process runs."""


def own(base: type[Method]) -> tuple[Source, ...]:
    """The methods in a family's ``policies/``.

    Raises:
        PolicyError: a file does not define exactly one method, or calls it by another name than its own.
    """
    family = family_of(base)
    if family not in _OWN:
        package = importlib.import_module(f"tenuto.{family}.policies")
        files = [f"{package.__name__}.{file.name}" for file in pkgutil.iter_modules(package.__path__)]
        _OWN[family] = tuple(_of_file(path, base) for path in files)
    return _OWN[family]


def _of_file(path: str, base: type[Method]) -> Source:
    cls, name = only_method(importlib.import_module(path), base), path.rpartition(".")[2]
    if cls.name != name:
        raise PolicyError(f"{path} defines a method called {cls.name!r}. Give file and method one name.")
    return cls, path


def only_method(module: ModuleType, base: type[Method]) -> type[Method]:
    """The one method that a file defines."""
    here = [cls for cls in vars(module).values() if _is_method(cls, base) and cls.__module__ == module.__name__]
    if len(here) != 1:
        names = ", ".join(cls.__name__ for cls in here) or "none"
        raise PolicyError(f"{module.__name__} must define exactly one policy class, found: {names}.")
    method: type[Method] = here[0]
    return method


def _is_method(value: object, base: type[Method]) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)


def installed(base: type[Method], points: Any = None) -> Iterator[Source]:
    """The methods that other packages add to a family.

    Args:
        points: what ``entry_points()`` gives, where it was asked already: it reads every distribution.

    Raises:
        PolicyError: an entry point cannot be loaded, is no method of the family, or has another name than its method.
    """
    every = entry_points() if points is None else points
    for point in every.select(group=f"tenuto.{family_of(base)}"):
        origin = f"the entry point {point.value}"
        try:
            cls = point.load()
        except (ImportError, AttributeError) as error:
            raise PolicyError(
                f"Method {point.name!r}: {origin} cannot be loaded ({error}). Uninstall or fix it."
            ) from error
        if not _is_method(cls, base):
            raise PolicyError(f"Method {point.name!r}: {origin} is not a {base.__name__} class. Uninstall or fix it.")
        if cls.name != point.name:
            raise PolicyError(
                f"Method {point.name!r}: {origin} calls itself {cls.name!r}. Write {cls.name} = ... in the entry "
                f'point, or name: ClassVar[str] = "{point.name}" in the class.'
            )
        yield cls, origin


def methods(base: type[Method]) -> dict[str, type[Method]]:
    """The methods of one family by name, sorted.

    Raises:
        PolicyError: two share a name, or one of the errors of :func:`own` and :func:`installed`.
    """
    return {name: cls for name, (cls, _) in resolved([*own(base), *installed(base)]).items()}


def resolved(sources: list[Source]) -> dict[str, Source]:
    """Methods by name, sorted.

    Raises:
        PolicyError: two share a name, or one's alias is another's name or alias.
    """
    origins: dict[str, str] = {}
    for cls, origin in sources:
        for name in (cls.name, *cls.aliases):
            if name in origins:
                raise PolicyError(
                    f"Two methods are called {name!r}: {origins[name]} and {origin}. Rename or remove one."
                )
            origins[name] = origin
    return {cls.name: (cls, origin) for cls, origin in sorted(sources, key=lambda source: source[0].name)}


def parse(given: str, known: Mapping[str, type[Method]], unknown: Callable[[str], str] | None = None) -> Method:
    """The policy that a text names: ``name``, ``name:option=value,...``, or several of these joined by a plus.

    Args:
        known: the methods that may be named.
        unknown: what is said of a name that is not among them; without it, what is near.

    Raises:
        PolicyError: an unknown name or option, a value of the wrong type, or a plus where it does not belong.
        InputError: a value that the policy refuses.
    """
    policy: Method | None = None
    aliases = {alias: text for cls in known.values() for alias, text in cls.aliases.items()}
    for part in re.split(r"\+(?!\d)", given):
        name, colon, rest = (piece.strip() for piece in part.partition(":"))
        if name in aliases:
            name, more, fixed = aliases[name].partition(":")
            colon, rest = colon or more, ",".join(filter(None, (fixed, rest)))
        if name not in known:
            raise PolicyError(unknown(name) if unknown else f"Unknown policy {name!r}.{closest(name, known)}")
        cls = known[name]
        if policy is not None and not cls.follows:
            raise PolicyError(f"{name} cannot follow a plus: it wraps no other policy. {_that_follow(known)}")
        options = cls.options()
        values = read_options(name, rest, {key: it.type for key, it in options.items()}) if colon else {}
        if missing := [it.name for it in options.values() if it.required and it.name not in values]:
            raise PolicyError(f"{name} needs {', '.join(missing)}: write {name}:{missing[0]}=VALUE.")
        policy = cls.after(policy, values)
    if policy is None:
        raise PolicyError("No policy was given.")
    return policy


def _that_follow(known: Mapping[str, type[Method]]) -> str:
    return f"Those that do: {', '.join(name for name, cls in known.items() if cls.follows) or 'none'}."
