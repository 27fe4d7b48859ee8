"""What becomes of threads and locks in a process that is forked: the child has none of the threads, and all locks as
they happened to be. Whatever has some of either asks to be told, and makes new ones.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Forked", "renewed_in_child"]


class Forked(Protocol):
    """Something with threads or locks."""

    def after_fork(self) -> None:
        """Make them anew; called in a child before anything else runs there."""


_told: weakref.WeakSet[Forked] = weakref.WeakSet()


def renewed_in_child(one: Forked) -> None:
    """Have :meth:`Forked.after_fork` called in every child that is forked from now on, while there is such a one."""
    _told.add(one)


def _in_child() -> None:
    for one in list(_told):
        one.after_fork()


os.register_at_fork(after_in_child=_in_child)
