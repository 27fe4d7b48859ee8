"""Recall by distance: facts in held-out text, asked for at the end of the row, ranked among all candidate words."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from tenuto.bench.attention.bits import held_windows
from tenuto.texts.facts import Fact, Facts
from tenuto.train.batches import TOKENS_PER_FACT
from tenuto.train.tokens import Tokens

__all__ = ["ASKED", "recall_by_distance"]

ASKED = 4
"""Facts of a row, each asked for once; fewer in rows that are short for them."""


def recall_by_distance(
    model: Any, text: Tokens, facts: Facts, *, length: int, rows: int, seed: int
) -> list[tuple[int, int]]:
    """Distance and rank of every question, in ``rows`` rows of ``length`` tokens.

    Where the facts are is drawn evenly in the logarithm of the distance to the questions, so that near and far are
    asked for alike. The questions stand one after the other, the nearest fact's first, each with its right answer.

    Returns:
        The distance in tokens from a value to where it is asked for, and how many candidates were likelier.

    Raises:
        InputError: a row is too short for the facts, or no held-out document is that long.
    """
    hay = held_windows(text, length, rows)
    candidates = torch.tensor(facts.values, device=model.device)
    found: list[tuple[int, int]] = []
    for number in range(rows):
        rng = random.Random(f"recall {seed} {length} {number}")
        row, places = _row(hay[number % len(hay), :length].tolist(), facts, rng)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0]
        for said, asked in places:
            score = logits[asked - 1]
            rank = int((score[candidates] > score[row[asked]]).sum())
            found.append((asked - said, rank))
    return found


def _row(hay: list[int], facts: Facts, rng: random.Random) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and for every fact where its value is stated and where it is asked for."""
    drawn = facts.draw(rng, min(ASKED, max(len(hay) // TOKENS_PER_FACT, 1)))
    lines = [fact.line for fact in drawn]
    room = facts.room(len(hay), [*lines, *lines])
    places = sorted(room - round(math.expm1(rng.random() * math.log1p(room))) for _ in drawn)
    row = facts.bury(hay, [*lines, *reversed(lines)], [*places, *[room] * len(drawn)])
    starts = [place + sum(map(len, lines[:i])) for i, place in enumerate(places)]
    stated = [start + len(fact.asked) for start, fact in zip(starts, drawn, strict=True)]
    return row, list(zip(stated, _questions(room, drawn), strict=True))


def _questions(room: int, drawn: Sequence[Fact]) -> list[int]:
    """Where the value of each fact is asked for: after the text and all facts, in reverse order."""
    end = room + sum(len(fact.line) for fact in drawn)
    places = []
    for fact in reversed(drawn):
        places.append(end + len(fact.asked))
        end += len(fact.line)
    return places[::-1]
