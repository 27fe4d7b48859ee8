"""Rows of training text. A batch is a function of seed and step: every attention reads the same, resumed or not."""

from __future__ import annotations

import random

import torch

from tenuto.errors import InputError
from tenuto.texts.facts import Facts
from tenuto.train.tokens import Tokens

__all__ = ["batch_of"]

FACTS = 8
"""One row in so many holds facts, each stated twice, so that recall is learned at all; the loss sees them as text."""

TOKENS_PER_FACT = 64
MOST_FACTS = 12


def batch_of(tokens: Tokens, facts: Facts, *, seed: int, step: int, rows: int, length: int) -> torch.Tensor:
    """Token ids ``[rows, length + 1]``, int64, from random places of the training text.

    Raises:
        InputError: the text is shorter than a row.
    """
    room = len(tokens.train) - length - 1
    if room < 0:
        raise InputError(f"The training text has {len(tokens.train)} tokens: rows of {length + 1} are too long.")
    rng = random.Random(f"batch {seed} {step}")
    batch = []
    for _ in range(rows):
        start = rng.randint(0, room)
        row = tokens.train[start : start + length + 1].tolist()
        if rng.randrange(FACTS) == 0:
            lines = [fact.line for fact in facts.draw(rng, min(max(length // TOKENS_PER_FACT, 1), MOST_FACTS))] * 2
            rng.shuffle(lines)
            room = facts.room(len(row), lines)
            row = facts.bury(row, lines, sorted(rng.randint(0, room) for _ in lines))
        batch.append(row)
    return torch.tensor(batch, dtype=torch.int64)
