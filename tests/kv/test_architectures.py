"""Every supported architecture: nothing changes at a full budget, memory shrinks below it, padding is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures_kv import MODELS
from transformers import DynamicCache

from tenuto.budget import MemoryBudget
from tenuto.kv.attach import attach
from tenuto.kv.policies.adakv import AdaKV
from tenuto.testing.kv import follow, tokens

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
POLICY = AdaKV(window=8)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


def test_a_full_budget_is_the_identity(model: Any) -> None:
    prompt, steps = tokens(60, rows=2), tokens(30, 1, rows=2)
    plain = follow(model, DynamicCache(config=model.config), prompt, steps)
    with attach(model, POLICY, budget=MemoryBudget.keep(1)) as run:
        torch.testing.assert_close(follow(model, run.cache(), prompt, steps), plain, atol=2e-3, rtol=1e-4)


def test_memory_shrinks_and_rows_keep_to_themselves(model: Any) -> None:
    prompt = tokens(120)
    batch, mask = torch.zeros(2, 120, dtype=torch.int64), torch.zeros(2, 120, dtype=torch.int64)
    batch[0], mask[0] = prompt[0], 1
    batch[1, 50:], mask[1, 50:] = tokens(70, 3)[0], 1
    steps = tokens(12, 1, rows=2)
    with attach(model, POLICY, budget=MemoryBudget.keep(0.4)) as run:
        together = follow(model, cache := run.cache(), batch, steps, mask)
        full_layers = 2 * 4 * 2 * 2 * 16 * len(cache.engine)
        assert cache.bytes_held < 0.7 * cache.bytes_full + full_layers
        for row, given in enumerate((prompt, tokens(70, 3))):
            alone = follow(model, run.cache(), given, steps[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], atol=2e-3, rtol=1e-4)


def test_what_greedy_beam_and_prompt_lookup_write(model: Any) -> None:
    prompt = torch.cat([tokens(30)] * 3, 1)
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    plain = model.generate(prompt, **options)
    with attach(model, POLICY, budget=MemoryBudget.keep(1)) as run:
        assert torch.equal(model.generate(prompt, **options), plain)
        assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=4, **options), plain)
    with attach(model, POLICY, budget=MemoryBudget.keep(0.4)) as run:
        greedy = model.generate(prompt, **options)
        assert model.generate(prompt, prompt_lookup_num_tokens=4, **options).shape == greedy.shape
        assert run.summary()["entries_per_head"] < 70
        assert model.generate(prompt, num_beams=2, **options).shape == greedy.shape
        assert run.summary()["entries_per_head"] < 70
