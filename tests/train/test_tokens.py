from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from tenuto.texts.corpus import Document, split
from tenuto.train import tokens as module
from tenuto.train.tokens import Tokens, prepare, token_bytes, train_tokenizer


def test_bytes_of_tokens_are_the_bytes_of_the_text(little_text: Tokens) -> None:
    text = "Ein Käse für 3 €, \x00 and a tab\t; 日本\n"
    ids = little_text.tokenizer(text, add_special_tokens=False).input_ids
    assert int(little_text.bytes_of[ids].sum()) == len(text.encode())
    assert little_text.tokenizer.decode(ids) == text
    assert int(token_bytes(little_text.tokenizer)[little_text.tokenizer.eos_token_id]) == 0
    assert little_text.pieces == 512


def test_the_tokenizer_is_the_same_for_the_same_text() -> None:
    texts = [topics[name] for name in sorted(topics)[:5]]
    assert train_tokenizer(texts, 400).get_vocab() == train_tokenizer(texts, 400).get_vocab()


def test_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_HOME", str(tmp_path))
    small = split(Document(name=name, text=topics[name]) for name in sorted(topics)[:40])
    monkeypatch.setattr(module, "collect", lambda: small)
    monkeypatch.setattr(module, "PIECES", 300)
    first = prepare()
    monkeypatch.setattr(module, "collect", None)
    again = prepare()
    assert again.digest == first.digest == small.digest and torch.equal(again.train, first.train)
    assert [len(row) for row in again.held] == [len(row) for row in first.held]
    assert sum(int(again.bytes_of[row.long()].sum()) for row in again.held) == sum(
        len(d.text.encode()) for d in small.held
    )
