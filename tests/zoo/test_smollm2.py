"""The real model: it loads quickly, answers, and a policy holds on it what it holds on random weights."""

from __future__ import annotations

import time

import pytest
import torch

import tenuto
from tenuto.bench.kv.cases import make_case
from tenuto.bench.likelihood import Perplexity
from tenuto.bench.reading import CacheEntry, reading
from tenuto.budget import MemoryBudget
from tenuto.zoo import smollm2
from tenuto.zoo.language import LanguageModel, load_language

pytestmark = [pytest.mark.smollm2, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    if not smollm2.at_hand():
        pytest.fail("SmolLM2 is not here: run `make test`, or `tenuto models pull smollm2` once.")
    return load_language("bundled:smollm2", "cpu")


def test_a_later_start_is_quick(language: LanguageModel) -> None:
    assert (smollm2.folder() / smollm2.RECEIPT).is_file()
    start = time.process_time()
    again = load_language("bundled:smollm2", "cpu")
    assert time.process_time() - start < 5
    assert again.fingerprint == language.fingerprint


def test_it_answers_from_a_whole_and_from_half_a_cache(language: LanguageModel) -> None:
    case = make_case(language, "niah_single", 1, 256, "after")
    for entry in (CacheEntry(), CacheEntry(policy=tenuto.Knorm(), budget=MemoryBudget.keep(0.5))):
        with reading(language, entry, case.context) as read:
            assert case.scores(read) == {"niah_single": 1.0}
            assert read.held().bytes_held <= (0.52 if entry.policy else 1.0) * read.held().bytes_full


def test_a_full_budget_is_the_identity(language: LanguageModel) -> None:
    case = Perplexity(language, 0, 128)
    with reading(language, CacheEntry(), case.context) as plain:
        wanted = plain.forced(case.following.tolist())
    with reading(language, CacheEntry(policy=tenuto.SnapKV(), budget=MemoryBudget.keep(1.0)), case.context) as read:
        assert torch.allclose(read.forced(case.following.tolist()), wanted, atol=2e-3)
