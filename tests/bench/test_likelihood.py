"""Perplexity and agreement against plain calls of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tenuto
from tenuto.bench.likelihood import AGREEMENT, CONTINUED, KL, PERPLEXITY, Agreement, Perplexity, text_of
from tenuto.bench.reading import CacheEntry, reading
from tenuto.budget import MemoryBudget
from tenuto.zoo.language import LanguageModel, load_language

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = CacheEntry(policy=tenuto.Knorm(), budget=MemoryBudget.tokens(8))


@pytest.fixture(scope="module")
def language(tiny_language: Path) -> LanguageModel:
    return load_language(str(tiny_language))


def test_text_is_real_and_seeded(language: LanguageModel) -> None:
    ids = text_of(language, 3, 200)
    assert ids.shape == (1, 200)
    assert torch.equal(ids, text_of(language, 3, 200))
    assert not torch.equal(ids, text_of(language, 4, 200))
    assert torch.equal(ids, text_of(language, 3, 300)[:, :200])


def test_perplexity_is_the_models_own(language: LanguageModel) -> None:
    case = Perplexity(language, 1, 40)
    assert case.context.shape == (1, 40)
    whole = torch.cat([case.context[0], case.following])
    logits = language.model(whole[None]).logits[0, 39:-1].detach()
    wanted = torch.nn.functional.cross_entropy(logits, whole[40:])
    with reading(language, CacheEntry(), case.context) as read:
        assert case.scores(read) == {PERPLEXITY: pytest.approx(float(wanted), abs=1e-4)}
    with reading(language, FEW, case.context) as read:
        assert case.scores(read)[PERPLEXITY] != pytest.approx(float(wanted), abs=1e-3)


def test_agreement_with_oneself_is_perfect_and_with_others_is_not(language: LanguageModel) -> None:
    case = Agreement(language, 1, 40)
    with reading(language, CacheEntry(), case.context) as read:
        own = case.scores(read)
    assert own == {AGREEMENT: 1.0, KL: pytest.approx(0.0, abs=1e-6)}
    assert case.uncached is not None
    assert len(case.uncached[0]) == CONTINUED
    with reading(language, FEW, case.context) as read:
        other = case.scores(read)
    assert other[KL] > 1e-3
    assert 0 <= other[AGREEMENT] < 1
