from __future__ import annotations

import random

import pytest
import torch

from tenuto.errors import InputError
from tenuto.texts.facts import Facts
from tenuto.train.batches import batch_of
from tenuto.train.tokens import Tokens


def test_a_batch_is_a_function_of_seed_and_step(little_text: Tokens) -> None:
    facts = Facts(little_text.tokenizer)

    def batch(seed: int, step: int) -> torch.Tensor:
        return batch_of(little_text, facts, seed=seed, step=step, rows=3, length=64)

    assert batch(0, 5).shape == (3, 65)
    assert batch(0, 5).equal(batch(0, 5))
    assert not batch(0, 5).equal(batch(0, 6)) and not batch(0, 5).equal(batch(1, 5))
    with pytest.raises(InputError, match="too long"):
        batch_of(little_text, facts, seed=0, step=0, rows=1, length=10**7)


def test_some_rows_state_a_fact_twice(little_text: Tokens) -> None:
    rows = batch_of(little_text, Facts(little_text.tokenizer), seed=0, step=0, rows=40, length=96)
    texts = [little_text.tokenizer.decode(row) for row in rows]
    assert 1 <= sum(text.count("\nNote: the ") == 2 for text in texts) <= 12


def test_facts_are_buried_whole(little_text: Tokens) -> None:
    facts, rng = Facts(little_text.tokenizer), random.Random(0)
    lines = [fact.line for fact in facts.draw(rng, 3)]
    hay = list(range(1000, 1100))
    row = facts.bury(hay, lines, [0, 5, 5])
    assert len(row) == 100 and row[: len(lines[0])] == lines[0]
    assert [token for token in row if token >= 1000] == hay[: 100 - sum(map(len, lines))]
    with pytest.raises(InputError, match="too short"):
        facts.room(10, lines)
    with pytest.raises(InputError, match="too many"):
        facts.draw(rng, 27)
