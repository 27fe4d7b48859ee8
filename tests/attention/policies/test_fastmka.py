"""FastMKA against its definition; the laws it shares with other attentions are in ``test_laws.py``."""

from __future__ import annotations

import pytest
import torch
from retrofitted import SHAPE, call, plain, stir, tokens
from transformers import DynamicCache

from tenuto import catalog
from tenuto.attention import FastMKA, attention_of, held, retrofit, watch
from tenuto.attention.policy import shares
from tenuto.errors import PolicyError

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_keys_and_values_are_the_published_mixture() -> None:
    heads, asked = FastMKA(horizons=2).build(SHAPE), call(40)
    for weight in heads.parameters():
        weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    state = heads.state()
    heads(asked, state)
    share = heads._route(asked.k)
    assert torch.allclose(share.sum(-1), torch.ones(1, 2, 40))
    for x, found, s in ((asked.k, state.k, heads.strength[:, 0]), (asked.v, state.v, heads.strength[:, 1])):
        want = torch.zeros_like(x)
        for head in range(2):
            for t in range(40):
                mix = share[0, head, t, 0] * x[0, head, t]
                for m in range(2):
                    beta = torch.exp(-1 / heads.log_horizon[head, m].exp())
                    power = beta ** torch.arange(t, -1, -1)
                    mix = mix + share[0, head, t, 1 + m] * (power / power.sum()) @ x[0, head, : t + 1]
                want[0, head, t] = x[0, head, t] + s[head] * (mix - x[0, head, t])
        assert torch.allclose(found, want, atol=1e-5)


@torch.no_grad()
def test_the_router_can_be_read_out() -> None:
    model = stir(retrofit(plain(), FastMKA(horizons=2)))
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1, :8] = 0
    with watch(model) as usage:
        model(tokens(2, 20), attention_mask=mask)
    found = shares(usage[0])
    assert list(found) == ["own", "ema1", "ema2"] and usage[0]["tokens"] == 32
    assert torch.allclose(torch.tensor(list(found.values())).sum(0), torch.ones(6))


@torch.no_grad()
def test_in_half_precision_the_averages_stay_single() -> None:
    model, ids, cache = plain().to(torch.bfloat16), tokens(1, 20), DynamicCache()
    before = model(ids).logits
    assert torch.equal(retrofit(model, FastMKA())(ids, past_key_values=cache).logits, before)
    assert {layer.state.ema.dtype for layer in cache.layers} == {torch.float32}
    assert held(cache)["device"] == 2 * model.model.layers[0].self_attn.heads.formula(20, 2)["device"]


def test_numbers_out_of_range() -> None:
    for text in ("fastmka:horizons=0", "fastmka:shortest=9,longest=8", "fastmka:bottleneck=0", "short_conv:kernel=1"):
        with pytest.raises(PolicyError, match="not allowed"):
            catalog.parse(text, "attention")
    assert attention_of(retrofit(plain(), FastMKA(horizons=2))) == "fastmka:horizons=2"
