"""Finds attentions by name: the files in ``policies/``, and the entry points ``tenuto.attention``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import entry_points

import tenuto.attention.policies
from tenuto.attention.policy import Attention
from tenuto.errors import PolicyError, closest

__all__ = ["attentions", "parse"]


@cache
def attentions() -> dict[str, type[Attention]]:
    """Every attention that is installed, by name, sorted.

    Raises:
        PolicyError: two share a name, or an entry point gives something else or cannot be loaded.
    """
    found = list[type[Attention]]()
    for info in pkgutil.iter_modules(tenuto.attention.policies.__path__):
        module = importlib.import_module(f"{tenuto.attention.policies.__name__}.{info.name}")
        found += [cls for cls in vars(module).values() if _is_one(cls) and cls.__module__ == module.__name__]
    for point in entry_points(group="tenuto.attention"):
        try:
            cls = point.load()
        except (ImportError, AttributeError) as error:
            raise PolicyError(
                f"The attention {point.value} cannot be loaded ({error}). Uninstall or fix it."
            ) from error
        if not _is_one(cls):
            raise PolicyError(f"The entry point {point.value} is no attention. Uninstall or fix it.")
        found.append(cls)
    if twice := {cls.name for cls in found if [other.name for other in found].count(cls.name) > 1}:
        raise PolicyError(f"Two attentions are called {sorted(twice)[0]!r}. Rename or remove one.")
    return {cls.name: cls for cls in sorted(found, key=lambda cls: cls.name)}


def _is_one(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Attention) and not inspect.isabstract(value)


def parse(given: str) -> Attention:
    """The attention that a text names, ``mka:window=64,chunk=16``, or two, ``short_conv+mka:window=64``.

    Raises:
        PolicyError: an unknown name or option, a value it refuses, or two that do not go together.
    """
    first, plus, then = given.partition("+")
    name, _, rest = (part.strip() for part in first.partition(":"))
    if name not in attentions():
        raise PolicyError(f"Unknown attention {name!r}.{closest(name, attentions())}")
    made = attentions()[name].parse(rest)
    return made.feeding(parse(then)) if plus else made
