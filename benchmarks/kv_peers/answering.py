"""What a row is asked, what it answers, and greedy decoding: one loop for every library. Imports torch alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import process_time

import torch

__all__ = ["REFUSALS", "Answers", "Asked", "Decoder", "Request"]

REFUSALS = (TypeError, ValueError, AttributeError, LookupError, AssertionError, RuntimeError, ImportError)
"""What a library raises on what it was not made for."""

Step = Callable[[torch.Tensor], torch.Tensor]
"""Runs token ids ``[1, new]`` after what the cache holds; gives the logits ``[vocabulary]`` of the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question: its token ids, and the most tokens of an answer."""

    tokens: list[int]
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One context with its questions, as token ids.

    Attributes:
        context: compressed before any question is known; questions: each asked on the compressed context alone.
        ends: tokens that end an answer.
    """

    context: list[int]
    questions: list[Asked]
    ends: list[int]

    def ids(self) -> torch.Tensor:
        """The context, ``[1, tokens]`` int64."""
        return torch.tensor([self.context])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came back.

    Attributes:
        tokens: token ids of each answer; bytes_held: of the cache after the context, before the first question.
        prefill_s: CPU seconds of the context, its compression included; decode_ms: CPU milliseconds per decoded token,
            None if no answer is longer than one token.
    """

    tokens: list[list[int]]
    bytes_held: int
    prefill_s: float
    decode_ms: float | None


class Decoder:
    """Writes greedy answers and keeps the time of the tokens after each first one.

    Args:
        ends: tokens that end an answer; they are not part of it.
    """

    def __init__(self, ends: list[int]) -> None:
        self.ends = frozenset(ends)
        self.seconds, self.steps = 0.0, 0

    def write(self, step: Step, asked: Asked) -> list[int]:
        """The answer to one question."""
        answer = [int(step(torch.tensor([asked.tokens])).argmax())]
        start = process_time()
        while len(answer) < asked.most and answer[-1] not in self.ends:
            answer.append(int(step(torch.tensor([answer[-1:]])).argmax()))
            self.steps += 1
        self.seconds += process_time() - start
        return [token for token in answer if token not in self.ends]

    @property
    def milliseconds(self) -> float | None:
        """CPU time per decoded token."""
        return 1000 * self.seconds / self.steps if self.steps else None
