"""What a broken law raises, and the laws that hold in every family."""

from __future__ import annotations

import dataclasses

from tenuto import catalog
from tenuto.method import Method

__all__ = ["LawError", "expect", "law_round_trip"]


class LawError(AssertionError):
    """A method broke a law."""


def expect(truth: bool, law: str, seen: object) -> None:
    """Raise LawError unless ``truth``: what was expected, and what was seen."""
    if not truth:
        raise LawError(f"law broken: {law}; seen: {seen}")


def law_round_trip(policy: Method) -> None:
    """Frozen, hashable, and the same after a trip through text."""
    text = catalog.text(policy)
    expect(catalog.parse(text) == policy, "a policy round-trips through text", text)
    try:
        same = hash(policy) == hash(catalog.parse(text))
    except TypeError as error:
        raise LawError(f"law broken: a policy is hashable; seen: {error}") from error
    expect(same, "equal policies have equal hashes", policy)
    try:
        setattr(policy, "warmup", 3)  # noqa: B010 (that it is forbidden is the point)
    except (dataclasses.FrozenInstanceError, TypeError, AttributeError):
        return
    raise LawError(f"law broken: a policy is frozen; seen: {policy} took a new warmup")
