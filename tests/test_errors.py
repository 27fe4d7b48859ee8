"""The exception tree, and the tail of a message about a closed name."""

from __future__ import annotations

import inspect

import pytest

from tenuto import errors
from tenuto.errors import TenutoError, closest

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, TenutoError)]


def test_one_root_catches_all_and_nothing_else() -> None:
    assert len(CLASSES) == 7
    assert all(cls is TenutoError or cls.__bases__ == (TenutoError,) for cls in CLASSES)
    assert TenutoError.__bases__ == (Exception,)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = [word for line in (errors.__doc__ or "").splitlines() for word in line.split() if word.endswith("Error")]
    assert sorted(drawn) == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_is_documented_and_public(cls: type[TenutoError]) -> None:
    import tenuto

    assert cls.__doc__
    assert getattr(tenuto, cls.__name__) is cls


def test_closest() -> None:
    assert closest("thresold", ["warmup", "threshold"]) == " Did you mean 'threshold'? Allowed: threshold, warmup."
    assert closest("zzz", ["b", "a"]) == " Allowed: a, b."
    assert closest("zzz", []) == " Allowed: none."
