from __future__ import annotations

import random
from types import SimpleNamespace

import torch

from tenuto.bench.attention.recall import ASKED, _row, recall_by_distance
from tenuto.texts.facts import Facts
from tenuto.train.tokens import Tokens

LENGTH = 260


class Copier:
    """Looks for the longest earlier piece of text that ends like this one, up to a reach, and says what came then."""

    device = torch.device("cpu")

    def __init__(self, pieces: int, reach: int) -> None:
        self.pieces, self.reach = pieces, reach

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        row = input_ids[0].tolist()
        logits = torch.zeros(1, len(row), self.pieces)
        for at in range(6, len(row)):
            for back in range(at - 1, max(at - self.reach, 5), -1):
                if row[back - 5 : back + 1] == row[at - 5 : at + 1]:
                    logits[0, at, row[back + 1]] += 1
                    break
        return SimpleNamespace(logits=logits)


def test_values_are_where_they_are_said_to_be(little_text: Tokens) -> None:
    facts = Facts(little_text.tokenizer)
    row, places = _row([5] * LENGTH, facts, random.Random(1))
    assert len(row) == LENGTH and len(places) == ASKED
    for said, asked in places:
        assert row[said] == row[asked] in facts.values and said < asked
        assert row[said - 4 : said] == row[asked - 4 : asked]


def test_who_copies_recalls_as_far_as_it_reaches(little_text: Tokens) -> None:
    facts = Facts(little_text.tokenizer)

    def asked(reach: int) -> list[tuple[int, int]]:
        model = Copier(little_text.pieces, reach)
        return recall_by_distance(model, little_text, facts, length=LENGTH, rows=6, seed=0)

    assert len(asked(1000)) == 6 * ASKED and all(rank == 0 for _, rank in asked(1000))
    near = asked(60)
    assert all(rank == 0 for distance, rank in near if distance < 60)
    assert [distance for distance, _ in near] == [distance for distance, _ in asked(1000)]
    assert {distance < 60 for distance, _ in near} == {True, False}
