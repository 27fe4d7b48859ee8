"""Stretches of code in which the calls of one run belong together: chunks of a prompt, answers, one ``generate``.

They belong to the thread or task that opened them: calls of others are not in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from tenuto.kv.step import Phase

__all__ = ["Section", "opened", "phase_in", "sections"]


@dataclass(slots=True, eq=False)
class Section:
    """One stretch.

    Attributes:
        run: whose calls are in it; phase: what they are; None: what they would be anywhere.
        caches: those that were called in it, in order.
    """

    run: Any
    phase: Phase | None
    caches: list[Any] = field(default_factory=list)


_open: ContextVar[tuple[Section, ...]] = ContextVar("tenuto_kv_sections", default=())


def sections(run: Any) -> list[Section]:
    """The sections of a run that are open here, the innermost last."""
    return [section for section in _open.get() if section.run is run]


def phase_in(run: Any) -> Phase | None:
    """What a call of a run is here; None: nothing was said of it."""
    return next((section.phase for section in reversed(sections(run)) if section.phase is not None), None)


@contextmanager
def opened(run: Any, phase: Phase | None = None) -> Iterator[Section]:
    """Calls of ``run`` made inside, by this thread or task, are in one section."""
    section = Section(run, phase)
    token = _open.set((*_open.get(), section))
    try:
        yield section
    finally:
        _open.reset(token)
