"""The laws of the attention family, on a tiny model that an attention is put into.

    from tenuto.testing import check_attention
    check_attention(MyAttention(window=8))

The added parameters get random values first, as after training: at their start many methods change nothing. Give small
numbers: the texts have 61 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from tenuto.attention.attach import Retrofitted, added, retrofit
from tenuto.attention.cache import held
from tenuto.attention.policy import Attention
from tenuto.testing.kv import TinyLM, close, tokens
from tenuto.testing.law import expect, law_round_trip

__all__ = ["ATTENTION_LAWS", "check_attention"]

LONG = 61


def _model(policy: Attention) -> Any:
    model, generator = retrofit(TinyLM(), policy), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in added(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


@torch.no_grad()
def _cached(model: Any, ids: torch.Tensor, cut: int) -> torch.Tensor:
    """Logits of a sequence given in pieces of so many tokens, with a cache."""
    cache = DynamicCache(config=model.config)
    return torch.cat([model(part, past_key_values=cache).logits for part in ids.split(cut, 1)], 1)


@torch.no_grad()
def law_causal(policy: Attention) -> None:
    """Later tokens change nothing before them."""
    model, ids = _model(policy), tokens(LONG, rows=2)
    changed = torch.cat([ids[:, :40], tokens(LONG - 40, 9, rows=2)], 1)
    before, after = (model(given, use_cache=False).logits[:, :40] for given in (ids, changed))
    close(after, before, "later tokens change nothing before them")


@torch.no_grad()
def law_pieces(policy: Attention) -> None:
    """In pieces, and token by token, as at once."""
    model, ids = _model(policy), tokens(LONG, rows=2)
    whole = model(ids, use_cache=False).logits
    for cut in (LONG, 17, 1):
        close(_cached(model, ids, cut), whole, f"in pieces of {cut} tokens as at once")


@torch.no_grad()
def law_left_padding(policy: Attention) -> None:
    """A padded row gives what it gives by itself."""
    model, ids = _model(policy), tokens(LONG, rows=2)
    mask = torch.ones_like(ids)
    ids[1, :19], mask[1, :19] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    both = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    alone = model(ids[1:, 19:], use_cache=False).logits
    close(both[1:, 19:], alone, "a padded row is the row by itself")


@torch.no_grad()
def law_bytes(policy: Attention) -> None:
    """A cache holds the bytes of the formula."""
    model, cache = _model(policy), DynamicCache()
    for token in tokens(LONG).split(1, 1):
        model(token, past_key_values=cache)
    said: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, Retrofitted):
            for tier, size in module.heads.formula(LONG, 4).items():
                said[tier] = said.get(tier, 0) + size
    expect(held(cache) == said, "a cache holds the bytes of the formula", (held(cache), said))


def law_trains(policy: Attention) -> None:
    """Every parameter gets a gradient."""
    model, ids = _model(policy).train(), tokens(LONG, rows=2)
    model(ids, labels=ids, use_cache=False).loss.backward()
    dead = [name for name, weight in added(model).items() if weight.grad is None or not bool(weight.grad.abs().sum())]
    expect(not dead, "every added parameter learns", dead)


ATTENTION_LAWS: tuple[Callable[[Attention], None], ...] = (
    law_causal,
    law_pieces,
    law_left_padding,
    law_bytes,
    law_trains,
)


def check_attention(policy: Attention) -> None:
    """Check every law on a tiny model.

    Raises:
        LawError: naming the law, what was expected and what was seen.
    """
    law_round_trip(policy)
    for law in ATTENTION_LAWS:
        law(policy)
