"""The text tasks by name, and which of them a small model can do."""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.errors import InputError, closest
from tenuto.eval.tasks.needles import MultiKey, MultiQuery, MultiValue, Single
from tenuto.eval.tasks.passkey import Passkey
from tenuto.eval.tasks.text import TextTask
from tenuto.eval.tasks.turns import MultiTurn
from tenuto.eval.tasks.variables import Variables
from tenuto.eval.tasks.words import CommonWords, FrequentWords

__all__ = ["EASY", "TEXT_TASKS", "parse_tasks"]

_ALL: tuple[TextTask, ...] = (
    Single(),
    MultiKey(),
    MultiValue(),
    MultiQuery(),
    Variables(),
    CommonWords(),
    FrequentWords(),
    Passkey(),
    MultiTurn(),
)
TEXT_TASKS: dict[str, TextTask] = {task.name: task for task in _ALL}

EASY: tuple[str, ...] = ("niah_single", "niah_multikey", "passkey")


def parse_tasks(text: str, also: Sequence[str] = ()) -> list[str]:
    """Task names from a text such as ``niah_single,vt``, in the order given.

    Args:
        text: names with commas between them; also: names allowed besides those of :data:`TEXT_TASKS`.

    Raises:
        InputError: an unknown name, a name twice, or none.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    allowed = (*TEXT_TASKS, *also)
    for name in names:
        if name not in allowed:
            raise InputError(f"task {name!r} is unknown.{closest(name, allowed)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"tasks={text!r} is not allowed: give at least one task, each once, such as niah_single,vt.")
    return names
