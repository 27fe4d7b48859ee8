"""The text tasks by name, and which of them a small model can do.

Ceilings: the mean score of SmolLM2-135M-Instruct (float32, greedy, no cache policy, no chat template) on contexts of
500 tokens. A figure with "chosen" comes from the examples its settings were chosen on, so it is optimistic.

    niah_single      1.00   40 examples, seeds 1000 to 1039
    niah_multivalue  0.99   40 examples, seeds 1000 to 1039
    niah_multiquery  0.95   40 examples, seeds 1000 to 1039
    niah_multikey    0.95   20 examples, seeds 100 to 119, chosen; in prose, with another question, 0.80 of 40
    multi_turn       0.96   12 examples, seeds 0 to 11, chosen
    vt               0.94    8 examples, seeds 0 to 7, chosen
    cwe              0.58   12 examples, seeds 0 to 11, chosen
    fwe              0.40   10 examples, seeds 0 to 9, chosen
    passkey          1.00    5 examples, seeds 0 to 4

At 384 tokens, 34 examples each, in `benchmarks/kv_peers.py` (docs/results/kv.md): niah_single 1.00, niah_multikey 0.94,
passkey 1.00. No task was measured at other lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.errors import InputError, closest
from tenuto.texts.needles import MultiKey, MultiQuery, MultiValue, Single
from tenuto.texts.passkey import Passkey
from tenuto.texts.task import TextTask
from tenuto.texts.turns import MultiTurn
from tenuto.texts.variables import Variables
from tenuto.texts.words import CommonWords, FrequentWords

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

EASY: tuple[str, ...] = ("niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "passkey")
"""Tasks with a ceiling of at least 0.9 on 20 examples or more."""


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
