"""The laws of the shards family, on a tiny model whose cache lies on shards of this process.

    from tenuto.testing import check_shard_method
    check_shard_method(MyMethod(page=4))

A method that needs a profile is checked without reading: give one that reads everything, or places tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from tenuto.shards.attach import shard
from tenuto.shards.policy import ShardMethod
from tenuto.testing.kv import TinyLM, close, follow, tokens
from tenuto.testing.law import expect, law_round_trip

__all__ = ["SHARD_LAWS", "check_shard_method"]

SHARDS, PROMPT, STEPS = 3, 70, 8


@torch.no_grad()
def _run(model: Any, policy: ShardMethod, prompt: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    with shard(model, policy, shards=SHARDS) as run:
        logits = follow(model, run.cache(), prompt, tokens(STEPS, 1, rows=len(prompt)))
        return logits, run.summary()


def law_no_token_is_lost(policy: ShardMethod) -> None:
    """All shards together hold every token; pages that are not full have room besides."""
    _, said = _run(TinyLM(), policy, tokens(PROMPT, rows=2))
    held = sum(said["bytes_by_shard"].values())
    expect(held >= said["bytes_full"], "all shards together hold every token", (held, said["bytes_full"]))
    expect(said["tokens_deleted"] == 0, "nothing is deleted", said["tokens_deleted"])


@torch.no_grad()
def law_exact_where_all_is_read(policy: ShardMethod) -> None:
    """Without a selector the logits are the model's own; a method that calls itself exact has none."""
    selector = policy.compose().selector
    expect(not (policy.exact and selector), "an exact method reads everything", selector)
    if selector is not None:
        return
    model, prompt = TinyLM(), tokens(PROMPT, rows=2)
    plain = follow(model, DynamicCache(config=model.config), prompt, tokens(STEPS, 1, rows=2))
    close(_run(model, policy, prompt)[0], plain, "all pages read are the model's own attention")


def law_reads_its_share(policy: ShardMethod) -> None:
    """A decoding step reads no more tokens than the selector's share, or its sinks and window."""
    selector = policy.compose().selector
    if selector is None:
        return
    logits, said = _run(TinyLM(), policy, tokens(PROMPT))
    steps = STEPS * TinyLM().config.num_hidden_layers
    most = max(selector.keep * said["tokens_held"], steps * (selector.sinks + selector.window))
    expect(0 < said["tokens_read"] <= most, f"no more than {most:g} tokens are read", said["tokens_read"])
    expect(bool(torch.isfinite(logits).all()), "logits are finite", logits)


SHARD_LAWS: tuple[Callable[[ShardMethod], None], ...] = (
    law_no_token_is_lost,
    law_exact_where_all_is_read,
    law_reads_its_share,
)


def check_shard_method(policy: ShardMethod) -> None:
    """Check every law on a tiny model.

    Raises:
        LawError: naming the law, what was expected and what was seen.
    """
    law_round_trip(policy)
    for law in SHARD_LAWS:
        law(policy)
