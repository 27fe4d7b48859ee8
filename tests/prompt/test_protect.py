"""Which tokens are protected."""

from __future__ import annotations

from typing import Any

import torch

from tenuto.prompt.protect import KINDS, marks

PIECES = [
    "<|im_start|>",
    "The",
    " owl",
    " of",
    " Paris",
    " ate",
    " 4",
    "2",
    " mice",
    ".",
    " They",
    " call",
    " get",
    "_size",
    "()",
    "\n",
    "Next",
    " 🦉",
]


class Words:
    """Tokens are the pieces above."""

    all_special_ids = (0,)

    def decode(self, ids: Any) -> str:
        return "".join(PIECES[number] for number in ids)


def test_numbers_names_code_and_template_are_marked() -> None:
    found = marks(Words(), torch.arange(len(PIECES)))
    expected = {
        "<|im_start|>": "template",
        " Paris": "name",
        " 4": "number",
        "2": "number",
        "_size": "code",
        "()": "code",
    }
    for piece, mark in zip(PIECES, found.tolist(), strict=True):
        assert mark == (KINDS[expected[piece]] if piece in expected else 0.0), piece


def test_without_a_tokenizer_nothing_is() -> None:
    assert not marks(None, torch.arange(5)).any()
