"""Reading a context and answering from copies of the cache, against plain calls of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tenuto
from tenuto.bench.reading import BINS, CacheEntry, reading
from tenuto.budget import MemoryBudget
from tenuto.zoo.language import LanguageModel, load_language

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = CacheEntry(policy=tenuto.Knorm(), budget=MemoryBudget.keep(0.25))
WHOLE = CacheEntry(policy=tenuto.Knorm(), budget=MemoryBudget.keep(1.0))


@pytest.fixture(scope="module")
def language(tiny_language: Path) -> LanguageModel:
    return load_language(str(tiny_language))


@pytest.fixture(scope="module")
def context(language: LanguageModel) -> torch.Tensor:
    return language.encode("a context of some length, " * 8)


def plain_answer(language: LanguageModel, ids: torch.Tensor, count: int) -> list[int]:
    for _ in range(count):
        ids = torch.cat([ids, language.model(ids).logits[:, -1:].argmax(-1)], 1)
    return [int(token) for token in ids[0, -count:]]


@pytest.mark.parametrize("entry", [CacheEntry(), WHOLE], ids=["plain", "whole"])
def test_answers_are_the_models_own(language: LanguageModel, context: torch.Tensor, entry: CacheEntry) -> None:
    question = language.encode("what?")
    wanted = plain_answer(language, torch.cat([context, question], 1), 5)
    with reading(language, entry, context) as read:
        for _ in range(2):  # a question leaves no trace
            assert read.answer(question, 5).tolist() == wanted
        assert read.answer(None, 5).tolist() == read.greedy(5) == plain_answer(language, context, 5)
        forced = read.forced(wanted)
        assert forced.shape == (5, len(language.tokenizer))
        full = language.model(torch.cat([context, torch.tensor([wanted])], 1)).logits[0]
        assert torch.allclose(forced, full[context.shape[1] - 1 : -1], atol=1e-4)
        assert read.decode_seconds(2) > 0
        assert read.seconds > 0


def test_an_answer_ends_where_the_model_ends_it(language: LanguageModel, context: torch.Tensor) -> None:
    with reading(language, CacheEntry(), context) as read:
        said = read.greedy(4)
        last = next(i for i, token in enumerate(said) if token not in said[:i] and i)
        language.model.generation_config.eos_token_id = [said[last]]
        try:
            assert read.answer(None, 4).tolist() == said[:last]
        finally:
            language.model.generation_config.eos_token_id = None


def test_question_and_answer_come_on_top_of_the_budget(language: LanguageModel, context: torch.Tensor) -> None:
    with reading(language, SMALL, context) as read:
        before = read.cache.bytes_held
        fork = read.cache.fork()
        with read._whole():
            read._call(language.encode("what?"), fork)
            read._call(torch.tensor([[5]]), fork)
        counts = fork.counts()[0][0]
        assert counts == [count + 6 for count in read.cache.counts()[0][0]]
        read.answer(language.encode("what?"), 3)
        assert read.cache.bytes_held == before
        held = read.held()
    tokens = context.shape[1]
    assert held.bytes_held < 0.3 * held.bytes_full
    assert held.peak_bytes >= held.bytes_held
    assert held.heads == [[int(0.25 * tokens) / tokens] * 2] * 2
    assert [len(row) for row in held.survivors] == [min(BINS, tokens)] * 2
    for row in held.survivors:
        assert 0.25 - 0.02 <= sum(row) / len(row) <= 0.52  # one head's quarter to two heads' halves


def test_a_plain_cache_holds_everything(language: LanguageModel, context: torch.Tensor) -> None:
    with reading(language, CacheEntry(), context) as read:
        held = read.held()
    assert held.bytes_held == held.bytes_full == held.peak_bytes == 2 * 2 * 2 * context.shape[1] * 8 * 4
    assert (CacheEntry().name, CacheEntry().budget_text) == ("none", "full")
    assert (SMALL.name, SMALL.budget_text) == ("knorm", "keep=0.25")
