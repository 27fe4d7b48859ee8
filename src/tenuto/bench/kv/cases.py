"""One example of any task as token ids, ready to be read and scored."""

from __future__ import annotations

from typing import Protocol

import torch

from tenuto.bench.likelihood import AGREEMENT, PERPLEXITY, Agreement, Perplexity
from tenuto.bench.reading import Reading
from tenuto.texts.task import TextTask
from tenuto.texts.tasks import TEXT_TASKS, parse_tasks
from tenuto.zoo.language import LanguageModel

__all__ = ["LIKELIHOOD_TASKS", "Case", "make_case", "read_tasks"]

LIKELIHOOD_TASKS = (PERPLEXITY, AGREEMENT)


class Case(Protocol):
    """``context``: token ids ``[1, tokens]``, read by every row, the uncompressed one first."""

    context: torch.Tensor

    def scores(self, reading: Reading) -> dict[str, float]:
        """What one row reached, by score name."""


class Answers:
    """Questions about a context. Where the question is inside the text that is compressed, only the first is asked."""

    def __init__(self, language: LanguageModel, task: TextTask, seed: int, tokens: int, question: str) -> None:
        example = task.make(seed, tokens, language.count)
        self.language, self.task = language, task
        self.questions = example.questions[:1] if question == "inside" else example.questions
        inside = self.questions[0].text if question == "inside" else ""
        self.context = language.encode(example.context + inside)
        self.outside = question != "inside"

    def scores(self, reading: Reading) -> dict[str, float]:
        """The mean over questions of what the task says."""
        reached = []
        for question in self.questions:
            asked = self.language.encode(question.text) if self.outside else None
            said = self.language.decode(reading.answer(asked, question.most_tokens))
            reached.append(self.task.score(said, question))
        return {self.task.name: sum(reached) / len(reached)}


def read_tasks(given: str) -> list[str]:
    """Task names from a text such as ``niah_single,perplexity``.

    Raises:
        InputError: there is no such task.
    """
    return parse_tasks(given, also=LIKELIHOOD_TASKS)


def make_case(language: LanguageModel, name: str, seed: int, tokens: int, question: str) -> Case:
    """The example of a task with this seed and at most so many tokens of context.

    Raises:
        InputError: the context is too short for the task.
    """
    if name == PERPLEXITY:
        return Perplexity(language, seed, tokens)
    if name == AGREEMENT:
        return Agreement(language, seed, tokens)
    return Answers(language, TEXT_TASKS[name], seed, tokens, question)
