"""The laws of the prompt family, on a tiny model.

from tenuto.testing import check_prompt_method
check_prompt_method(MyMethod(layer=0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from tenuto.budget import MemoryBudget
from tenuto.kv.attach import attach
from tenuto.kv.policy import KVPolicy
from tenuto.prompt.policy import PromptMethod
from tenuto.prompt.read import read
from tenuto.testing.kv import TinyLM, close, tokens
from tenuto.testing.law import expect, law_round_trip

__all__ = ["PROMPT_LAWS", "check_prompt_method"]

WHOLE = MemoryBudget.keep(1.0)


def _changed(policy: PromptMethod, **numbers: Any) -> PromptMethod:
    changed: PromptMethod = replace(policy, **numbers)
    return changed


def law_ratio(policy: PromptMethod) -> None:
    """A prompt becomes as many entries as asked for, whatever its length, each token in at most one of them."""
    model = TinyLM()
    layers = model.config.num_hidden_layers
    for length in (1, 2, 33, 90, 150):
        with attach(model, KVPolicy(), budget=WHOLE) as run:
            spans = read(run, tokens(length), policy).spans
        wanted = policy.count(length, layers)
        expect(len(spans) == wanted, f"{length} tokens become {wanted} entries", len(spans))
        inside = bool((spans.starts <= spans.ends).all() and (spans.ends < length).all())
        apart = bool((spans.starts[1:] > spans.ends[:-1]).all())
        expect(inside and apart, "spans are in order and do not overlap", (spans.starts.tolist(), spans.ends.tolist()))


@torch.no_grad()
def law_nothing_merged_is_plain(policy: PromptMethod) -> None:
    """At a ratio of 1 the model sees the prompt itself."""
    model, ids, after = TinyLM(), tokens(60), tokens(5, 1)
    cache = DynamicCache(config=model.config)
    plain = [model(ids, past_key_values=cache).logits[0, -1:], model(after, past_key_values=cache).logits[0]]
    with attach(model, KVPolicy(), budget=WHOLE) as run:
        prompt = read(run, ids, _changed(policy, ratio=1.0))
        later = model(after, past_key_values=prompt.cache).logits[0]
    close(torch.cat([prompt.logits[None], later]), torch.cat(plain), "a ratio of 1 is the plain model")


@torch.no_grad()
def law_bytes(policy: PromptMethod) -> None:
    """The cache holds what the ratio says, and the text goes on."""
    model, length = TinyLM(), 200
    layers, first = model.config.num_hidden_layers, policy.first(model.config.num_hidden_layers)
    with attach(model, KVPolicy(), budget=WHOLE) as run:
        prompt = read(run, tokens(length), policy)
        entries = first * length + (layers - first) * len(prompt.spans)
        full = prompt.cache.bytes_full
        expect(
            prompt.cache.bytes_held * layers * length <= full * entries * 1.1,
            "the cache holds no more than its entries",
            (prompt.cache.bytes_held, full),
        )
        later = model(tokens(5, 1), past_key_values=prompt.cache).logits
    expect(bool(torch.isfinite(later).all()), "the text goes on", later)


PROMPT_LAWS: tuple[Callable[[PromptMethod], None], ...] = (law_ratio, law_nothing_merged_is_plain, law_bytes)


def check_prompt_method(policy: PromptMethod) -> None:
    """Check every law on a tiny model.

    Raises:
        LawError: naming the law, what was expected and what was seen.
    """
    law_round_trip(policy)
    for law in PROMPT_LAWS:
        law(policy)
