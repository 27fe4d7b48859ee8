"""KVJob: which contexts and tasks a KV benchmark measures, in which rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenuto.errors import InputError

__all__ = ["KVJob", "Round", "read_lengths"]

Round = tuple[int, str, int]
"""Context length, task and number of the example."""

WAYS = ("after", "inside")


@dataclass(frozen=True, slots=True, kw_only=True)
class KVJob:
    """Example number i of a task has the seed ``seed + i``, at every context length.

    Attributes:
        contexts: lengths in tokens; tasks: names; examples: per task and length; seed: of the first example.
        question: "after", unknown when the context is compressed, or "inside" the text that is compressed.
        decoded: tokens decoded to measure the time per token.

    Raises:
        InputError: a number is out of its range.
    """

    contexts: tuple[int, ...] = (1024,)
    tasks: tuple[str, ...] = ("niah_single",)
    examples: int = 20
    seed: int = 0
    question: str = "after"
    decoded: int = 16

    def __post_init__(self) -> None:
        if not self.contexts or not self.tasks:
            raise InputError("No context length or no task was given. Give at least one of both.")
        for name, least in (("examples", 1), ("seed", 0), ("decoded", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} is not allowed: give {least} or more.")
        if wrong := [length for length in self.contexts if length < 1]:
            raise InputError(f"context={wrong[0]} is not allowed: give 1 token or more.")
        if self.question not in WAYS:
            raise InputError(f"question={self.question!r} is not allowed: give one of {', '.join(WAYS)}.")

    @property
    def rounds(self) -> list[Round]:
        """All of them, one task after the other within an example, so that early rounds say something of every task."""
        return [
            (context, task, number)
            for context in self.contexts
            for number in range(self.examples)
            for task in self.tasks
        ]

    def settings(self) -> dict[str, Any]:
        """What a record tells of it."""
        return {
            "tasks": ", ".join(self.tasks),
            "examples": self.examples,
            "seed": self.seed,
            "question": self.question,
            "decoded": self.decoded,
        }


def read_lengths(given: str) -> tuple[int, ...]:
    """Context lengths from a text such as ``1024,2048``, each once, in order.

    Raises:
        InputError: a part is not a whole number.
    """
    try:
        return tuple(dict.fromkeys(int(part) for part in given.split(",")))
    except ValueError as error:
        raise InputError(f"context={given} is not a list of token counts. Give for example 1024,2048.") from error


def distinct(names: Sequence[str]) -> None:
    """Refuse a row given twice.

    Raises:
        InputError: naming it.
    """
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise InputError(f"{twice[0]} was given twice. Give every policy and budget once.")
