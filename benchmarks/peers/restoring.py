"""Peers leave things behind when they are switched off: attributes, wrapped methods, extra child modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["as_they_were"]


@contextmanager
def as_they_were(owners: Iterable[Any]) -> Iterator[None]:
    """The attributes of these objects and classes, and the children of modules, are afterwards what they were."""
    before = [(owner, dict(vars(owner)), dict(vars(owner).get("_modules", {}))) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes, children in before:
            for name in set(vars(owner)) - set(attributes):
                delattr(owner, name)
            for name, value in attributes.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
            if children:  # their order as well: it is that of the model's weights
                attributes["_modules"].clear()
                attributes["_modules"].update(children)
