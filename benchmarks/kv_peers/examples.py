"""The examples of a comparison as token ids, in a file that both libraries read the same way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from kv_peers.answering import Asked, Request
from tenuto.texts.task import TextTask
from tenuto.zoo.language import LanguageModel

__all__ = ["Case", "make", "read", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One example: ``name`` is its task and seed, ``answers`` what each right answer holds."""

    name: str
    request: Request
    answers: list[list[str]]

    def score(self, texts: Sequence[str]) -> float:
        """The fraction of the right answers that the texts hold, upper or lower case alike, as text tasks score; mean
        over the questions."""
        pairs = list(zip(texts, self.answers, strict=True))
        return fmean(fmean(right.lower() in text.lower() for right in answers) for text, answers in pairs)


def make(task: TextTask, seed: int, tokens: int, model: LanguageModel) -> Case:
    """One example of a task; the questions are not part of the context."""
    example = task.make(seed, tokens, model.count)
    asked = [Asked(tokens=model.encode(q.text)[0].tolist(), most=q.most_tokens) for q in example.questions]
    request = Request(context=model.encode(example.context)[0].tolist(), questions=asked, ends=sorted(model.ends))
    return Case(name=f"{task.name}/{seed}", request=request, answers=[list(q.answers) for q in example.questions])


def write(cases: Iterable[Case], path: Path) -> None:
    """One JSON line per example."""
    path.write_text("".join(json.dumps(asdict(case)) + "\n" for case in cases))


def read(path: Path) -> list[Case]:
    """The examples of a file."""
    cases = []
    for line in path.read_text().splitlines():
        told = json.loads(line)
        asked = [Asked(**question) for question in told["request"].pop("questions")]
        cases.append(
            Case(name=told["name"], request=Request(questions=asked, **told["request"]), answers=told["answers"])
        )
    return cases
