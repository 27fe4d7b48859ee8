"""Which generation a call belongs to: what was said in this thread or task, not what was last said to the run."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Generic, TypeVar

__all__ = ["Said", "nameless", "over"]

T = TypeVar("T")


class Said(Generic[T]):
    """A value for the time of a ``with`` block, seen by the calls of its own thread or asynchronous task only."""

    def __init__(self, name: str, default: T) -> None:
        self._value: ContextVar[T] = ContextVar(name, default=default)

    def __call__(self) -> T:
        return self._value.get()

    @contextmanager
    def being(self, value: T) -> Iterator[None]:
        """Say another value inside."""
        before = self()
        token: Token[T] = self._value.set(value)
        try:
            yield
        finally:
            try:
                self._value.reset(token)
            except ValueError:  # left in another context than entered, as generators may be
                self._value.set(before)


def nameless(home: threading.Thread) -> Hashable:
    """The name of calls that were given none: one per thread, and empty in the thread that attached."""
    thread = threading.current_thread()
    return "" if thread is home else thread


def over(session: Hashable) -> bool:
    """Whether a session is that of a thread which has ended."""
    return isinstance(session, threading.Thread) and not session.is_alive()
