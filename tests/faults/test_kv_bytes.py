"""Bytes that are held are bytes that are meant: sliding layers keep their window, and budgets count it beforehand."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from size_kv import SIZE

from tenuto import Knorm, MemoryBudget, StreamingLLM, attach
from tenuto.testing.kv import tokens

TOKEN = 2 * 2 * 16 * 4
"""Bytes of a token in one layer."""


def model() -> tf.Gemma3ForCausalLM:
    torch.manual_seed(0)
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    size = {**SIZE, "num_hidden_layers": 4}
    config = tf.Gemma3TextConfig(**size, head_dim=16, query_pre_attn_scalar=16, sliding_window=10, layer_types=kinds)
    return tf.Gemma3ForCausalLM(config).eval()


@torch.no_grad()
def test_after_a_prefill_sliding_layers_hold_their_window_alone() -> None:
    with attach(model(), Knorm(), budget=MemoryBudget.keep(0.5)) as run:
        run.model(tokens(200), past_key_values=(cache := run.cache()))
        sliding = sum(t.untyped_storage().nbytes() for layer in cache.layers[:3] for t in (layer.keys, layer.values))
        assert sliding == 3 * 9 * TOKEN
        assert cache.bytes_held <= cache.bytes_full


@torch.no_grad()
@pytest.mark.parametrize("room", [40, 100, 180])
def test_a_budget_in_bytes_has_room_for_what_it_has_room_for(room: int) -> None:
    budget = 3 * 10 * TOKEN + room * (TOKEN + 2 * 4) + 5 * (200 + 16)
    with attach(model(), Knorm(), budget=MemoryBudget.bytes(budget)) as run:
        run.model(tokens(200), past_key_values=(cache := run.cache()))
        assert cache.bytes_held <= budget
        assert cache.counts()[0][0][0] >= 0.9 * room


@torch.no_grad()
@pytest.mark.parametrize("prompt", [25, 30, 33, 200])
def test_a_budget_in_bytes_holds_while_tokens_are_generated(prompt: int) -> None:
    """Also behind a prompt that was shorter than it: what is reserved for tokens to come is counted too."""
    budget = 2 * (3 * 10 * TOKEN + 40 * (TOKEN + 2 * 4) + 5 * (prompt + 40 + 16))
    with attach(model(), StreamingLLM(), budget=MemoryBudget.bytes(budget)) as run:
        run.model(tokens(prompt, rows=2), past_key_values=(cache := run.cache()))
        for seed in range(40):
            run.model(tokens(1, seed, rows=2), past_key_values=cache)
            assert cache.bytes_held <= budget
