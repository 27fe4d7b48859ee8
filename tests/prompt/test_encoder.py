"""Fingerprints from a sentence encoder: what is encoded, how often, and how they decide."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import torch

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError, PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policy import KVPolicy
from tenuto.prompt.encoder import encode, wordllama
from tenuto.prompt.policies.semtoken import SemToken
from tenuto.prompt.read import read
from tenuto.testing.kv import TinyLM, tokens


class Letters:
    """A tokenizer whose tokens are letters."""

    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + number % 26) for number in ids)

    def batch_decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(ids) for ids in batch]


class Counting:
    """An encoder that counts its calls, and tells halves of the alphabet apart."""

    def __init__(self) -> None:
        self.calls = list[list[str]]()

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        self.calls.append(list(texts))
        early = [sum(letter < "n" for letter in text) / len(text) for text in texts]
        return torch.tensor([[share, 1 - share] for share in early])


def test_each_token_is_encoded_with_two_on_both_sides_in_one_call() -> None:
    encoder = Counting()
    found = encode(Letters(), torch.tensor([0, 1, 2, 3, 25]), encoder)
    assert encoder.calls == [["abc", "abcd", "abcdz", "bcdz", "cdz"]]
    assert found.shape == (5, 2)
    assert torch.allclose(found.norm(dim=-1), torch.ones(5))


def test_words_of_like_meaning_have_like_fingerprints() -> None:
    """The real encoder, of what it says about texts; a text without words is no direction, and not a NaN."""
    dog, puppy, bond, empty = wordllama()(["the dog barked", "a puppy was barking", "interest rates of bonds", ""])
    near, far = (float(torch.cosine_similarity(dog, other, dim=0)) for other in (puppy, bond))
    assert near > far + 0.3
    blank = encode(Letters(), torch.tensor([0, 1]), lambda texts: torch.stack([dog, empty]))
    assert torch.isfinite(blank).all()


def test_a_prompt_is_read_by_the_encoder_that_was_given() -> None:
    """Spans end where the encoder says that the meaning changes."""
    encoder, method = (
        Counting(),
        SemToken(ratio=1 / 12, fingerprint="sentences", coherence=50.0, order=0, layer=0, sinks=0, recent=0),
    )
    letters = torch.randint(0, 13, (6, 12), generator=torch.Generator().manual_seed(1))
    changing = (letters + 13 * (torch.arange(6) % 2)[:, None]).reshape(1, -1)
    with attach(TinyLM(), KVPolicy(), budget=MemoryBudget.keep(1.0)) as run:
        prompt = read(run, changing, method, tokenizer=Letters(), encoder=encoder)
    assert len(encoder.calls) == 1
    assert all(
        abs(end - change) <= 1 for end, change in zip((prompt.spans.ends + 1).tolist(), range(12, 73, 12), strict=True)
    )


def test_what_cannot_be_encoded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Give the tokenizer"):
        encode(None, torch.tensor([1]))
    with pytest.raises(InputError, match=r"gave \[3\] for 2 texts"):
        encode(Letters(), torch.tensor([1, 2]), lambda texts: torch.zeros(3))
    with attach(TinyLM(), KVPolicy(), budget=MemoryBudget.keep(1.0)) as run:
        with pytest.raises(InputError, match="Give the tokenizer"):
            read(run, tokens(20), SemToken(fingerprint="sentences", coherence=1.0))
        assert torch.isfinite(read(run, tokens(20), SemToken()).logits).all()
    wordllama.cache_clear()
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(InputError, match="Install it: pip install 'tenuto\\[prompt\\]'"):
        encode(Letters(), torch.tensor([1]))


def test_a_fingerprint_that_is_unknown_or_not_looked_at_is_refused() -> None:
    with pytest.raises(PolicyError, match="Did you mean 'sentences'"):
        catalog.parse("semtoken:coherence=1,fingerprint=sentence", "prompt")
    with pytest.raises(PolicyError, match="give coherence as well"):
        catalog.parse("semtoken:fingerprint=sentences", "prompt")
