"""Where a method comes from, and what was published about it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Claim", "Paper"]


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from; ``tenuto cite`` prints it.

    Attributes:
        title: of the paper.
        authors: their names, separated by commas.
        year: of publication.
        url: where it can be read.
    """

    title: str
    authors: str
    year: int
    url: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A headline number that a method's authors published. It is theirs: nothing here is measured by Tenuto.

    Attributes:
        quantity: what is measured, against what.
        value: the number with its unit.
        model: what it was measured on, with the setting that matters.
        source: the section or table of the paper, or the repository.
    """

    quantity: str
    value: str
    model: str
    source: str
