"""Differential law: a prompt read at a ratio of 1 is that prompt, however its cache is used afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from uses_drawn import drawn, uses

import tenuto
from tenuto import catalog
from tenuto.prompt.read import read
from tenuto.testing.kv import TinyLM, tokens
from tenuto.testing.uses import Use, law_use

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = tuple(sorted(name for name, info in catalog.methods("prompt").items() if info.cls().ratio <= 1))
POLICIES = ("knorm", "snapkv:window=8", "h2o", "streaming_llm", "kvzip", "adakv")
MODEL, PLAIN = TinyLM(), TinyLM()


@drawn
@given(
    use=uses,
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    method=st.sampled_from(METHODS),
    policy=st.sampled_from(POLICIES),
)
@example(Use(padding=(0,), calls=(("steps", 3), ("crop", 2), ("copy", 1), ("read", 4))), [9, 4], "semtoken", "h2o")
def test_prompts_read_one_after_the_other(use: Use, lengths: list[int], method: str, policy: str) -> None:
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths, use.seed)]
    whole = replace(catalog.parse(method, "prompt"), ratio=1.0)
    with tenuto.attach(MODEL, catalog.parse(policy, "kv"), budget=tenuto.MemoryBudget.keep(1.0)) as run:

        def new() -> Any:
            cache = None
            for ids in prompts:
                cache = read(run, ids, whole, cache=cache).cache
            return cache

        law_use(use, MODEL, PLAIN, new, begun=torch.cat(prompts, 1))


@torch.no_grad()
def test_the_law_sees_a_difference() -> None:
    ids, half = tokens(60), catalog.parse("fixed:ratio=0.5", "prompt")
    with tenuto.attach(MODEL, tenuto.Knorm(), budget=tenuto.MemoryBudget.keep(1.0)) as run:
        with pytest.raises(AssertionError, match="text at once"):
            law_use(Use(padding=(0,), calls=()), MODEL, PLAIN, lambda: read(run, ids, half).cache, begun=ids)
