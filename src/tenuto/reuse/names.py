"""Assemblers by name: ``cacheblend:recompute=0.15`` and the like, as text."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from tenuto.errors import PolicyError, closest
from tenuto.reuse.policies.cacheblend import CacheBlend
from tenuto.reuse.policies.cachecraft import CacheCraft
from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.reuse.policies.full import FullRecompute
from tenuto.reuse.policy import Assembler

__all__ = ["ASSEMBLERS", "parse", "text"]

ASSEMBLERS: dict[str, type[Assembler]] = {
    "cacheblend": CacheBlend,
    "cachecraft": CacheCraft,
    "concatenate": Concatenate,
    "full": FullRecompute,
}


def parse(given: str) -> Assembler:
    """The assembler that a text such as ``full`` or ``cacheblend:recompute=0.3,check=2`` names.

    Raises:
        PolicyError: an unknown name or option, or a value that is not allowed.
    """
    name, _, rest = (part.strip() for part in given.partition(":"))
    if name not in ASSEMBLERS:
        raise PolicyError(f"Unknown assembler {name!r}.{closest(name, ASSEMBLERS)}")
    cls, values = ASSEMBLERS[name], dict[str, Any]()
    kinds = get_type_hints(cls)
    options = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    for item in rest.split(",") if rest else ():
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in options:
            raise PolicyError(f"{name} has no option {key!r}.{closest(key, options)}")
        if key in values:
            raise PolicyError(f"{name}: write option {key!r} once; got {given!r}.")
        try:
            values[key] = {"true": True, "false": False}[value] if kinds[key] is bool else kinds[key](value)
        except (ValueError, KeyError) as error:
            raise PolicyError(f"{name}: {key}={value} is not allowed: give a {kinds[key].__name__}.") from error
    return cls(**values)


def text(assembler: Assembler) -> str:
    """The text that :func:`parse` turns back into this assembler.

    Raises:
        PolicyError: it is none of these.
    """
    name = next((name for name, cls in ASSEMBLERS.items() if cls is type(assembler)), None)
    if name is None:
        raise PolicyError(f"{type(assembler).__name__} has no name. Named: {', '.join(ASSEMBLERS)}.")
    changed = [
        f"{item.name}={str(value).lower() if isinstance(value, bool) else value}"
        for item in fields(assembler)  # type: ignore[arg-type]
        if (value := getattr(assembler, item.name)) != item.default
    ]
    return f"{name}:{','.join(changed)}" if changed else name
