"""Differential law: chunks joined by what computes them in full are the text they make, however the cache is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from uses_drawn import drawn, uses

import tenuto
from tenuto import catalog
from tenuto.testing.kv import TinyLM, tokens
from tenuto.testing.uses import Use, law_use
from tenuto.tiers.host import HostTier

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = ("full", "cacheblend:recompute=1.0", "cachecraft:overhead=1.0")
POLICIES = ("knorm", "snapkv:window=8", "pyramidkv:window=8", "streaming_llm", "kvzip", "adakv", "quest")
MODEL, PLAIN = TinyLM(), TinyLM()


@drawn
@given(
    use=uses,
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    assembler=st.sampled_from(EXACT),
    policy=st.sampled_from(POLICIES),
    stored=st.booleans(),
)
@example(
    Use(padding=(0,), calls=(("steps", 3), ("crop", 2), ("copy", 1), ("read", 4))), [7, 5], EXACT[0], "quest", True
)
@example(Use(padding=(0, 2), calls=(("repeat", 1), ("reset", 1), ("read", 8))), [3], EXACT[1], "knorm", False)
def test_joined_chunks(use: Use, lengths: list[int], assembler: str, policy: str, stored: bool) -> None:
    chunks = [tokens(length, seed) for seed, length in enumerate(lengths, use.seed)]
    store = tenuto.ChunkStore(HostTier(2**26)) if stored else None
    with tenuto.attach(MODEL, catalog.parse(policy, "kv"), budget=tenuto.MemoryBudget.keep(1.0)) as run:

        def new() -> Any:
            for _ in range(2 if stored else 1):  # the second time they come from the store
                cache = run.join(chunks, catalog.parse(assembler, "reuse"), store=store)
            return cache

        law_use(use, MODEL, PLAIN, new, begun=torch.cat(chunks, 1))


@torch.no_grad()
def test_the_law_sees_a_difference() -> None:
    chunks = [tokens(12, seed) for seed in range(3)]
    with tenuto.attach(MODEL, tenuto.Knorm(), budget=tenuto.MemoryBudget.keep(1.0)) as run:
        with pytest.raises(AssertionError, match="text at once"):
            law_use(
                Use(padding=(0,), calls=()),
                MODEL,
                PLAIN,
                lambda: run.join(chunks, tenuto.Concatenate()),
                begun=torch.cat(chunks, 1),
            )
