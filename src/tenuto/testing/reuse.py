"""The laws of the reuse family, on a tiny model.

from tenuto.testing import check_assembler
check_assembler(MyAssembler(recompute=0.2))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from tenuto.budget import MemoryBudget
from tenuto.kv.attach import attach
from tenuto.kv.policy import KVPolicy
from tenuto.reuse.policy import Assembler
from tenuto.testing.kv import TinyLM, close, tokens
from tenuto.testing.law import expect, law_round_trip

__all__ = ["REUSE_LAWS", "check_assembler"]

LENGTHS = (11, 20, 15, 9)


def _chunks() -> list[torch.Tensor]:
    return [tokens(length, seed) for seed, length in enumerate(LENGTHS)]


@torch.no_grad()
def _answered(model: Any, policy: Assembler, chunks: list[torch.Tensor], question: torch.Tensor) -> torch.Tensor:
    """Logits of a question after chunks that were joined."""
    with attach(model, KVPolicy(), budget=MemoryBudget.keep(1.0)) as run:
        cache = run.join(chunks, policy)
        columns = sum(chunk.shape[1] for chunk in chunks)
        expect(cache.sequences.columns == columns, f"all {columns} tokens are there", cache.sequences.columns)
        logits: torch.Tensor = model(question, past_key_values=cache).logits
    return logits


@torch.no_grad()
def law_one_chunk_is_exact(policy: Assembler) -> None:
    """A chunk that comes first, and alone, is what it was computed as."""
    model, chunk, question = TinyLM(), tokens(30), tokens(5, 9)
    cache = DynamicCache(config=model.config)
    model(chunk, past_key_values=cache)
    plain = model(question, past_key_values=cache).logits
    close(_answered(model, policy, [chunk], question), plain, "one chunk alone is exact")


@torch.no_grad()
def law_all_tokens(policy: Assembler) -> None:
    """Every token is there, the question can be asked, and an exact assembler answers as the whole prompt does."""
    model, question = TinyLM(), tokens(5, 9)
    logits = _answered(model, policy, _chunks(), question)
    expect(bool(torch.isfinite(logits).all()), "a question can be asked", logits)
    if policy.exact:
        plain = model(torch.cat([*_chunks(), question], 1), use_cache=False).logits[:, -question.shape[1] :]
        close(logits, plain, "an exact assembler is the whole prompt")


REUSE_LAWS: tuple[Callable[[Assembler], None], ...] = (law_one_chunk_is_exact, law_all_tokens)


def check_assembler(policy: Assembler) -> None:
    """Check every law on a tiny model.

    Raises:
        LawError: naming the law, what was expected and what was seen.
    """
    law_round_trip(policy)
    for law in REUSE_LAWS:
        law(policy)
