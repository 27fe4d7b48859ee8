"""MKA against a dense attention that is written from the definition, and against what it must be at its edges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from retrofitted import plain, stir, tokens
from transformers import DynamicCache

from tenuto.attention import MKA, Window, held, keep_far, retrofit, watch
from tenuto.attention.policies.mka import MKAHeads
from tenuto.attention.policy import AttentionCall, Shape, shares
from tenuto.errors import AttachError, PolicyError, StoreError

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def difference(a: torch.nn.Module, b: torch.nn.Module, length: int = 60) -> float:
    ids = tokens(2, length)
    return float((a(ids, use_cache=False).logits - b(ids, use_cache=False).logits).abs().max())


def test_a_text_within_the_window_is_plain_attention() -> None:
    assert difference(plain(), stir(retrofit(plain(), MKA(window=40, chunk=4))), 40) <= 1e-5


def test_everything_recalled_at_its_own_position_is_plain_attention() -> None:
    attention = MKA(window=8, sinks=2, chunk=4, recall=15, horizons=0, original=True)
    assert difference(plain(), retrofit(plain(), attention)) <= 1e-5


def test_without_memory_it_is_the_window_rounded_to_chunks() -> None:
    attention = MKA(window=8, sinks=2, chunk=1, recall=0, horizons=0, session=False)
    assert difference(retrofit(plain(), attention), retrofit(plain(), Window(window=8, sinks=2))) <= 1e-5


def turn(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``[..., head_dim]`` at numbers ``[...]``."""
    half = x.shape[-1] // 2
    angle = at[..., None] * 0.3 ** torch.arange(half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def by_definition(heads: MKAHeads, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, head: int) -> torch.Tensor:
    """One query head of one row, query by query: q, k, v ``[tokens, head_dim]``; needs recall=0 or all scores alike."""
    a, h, out = heads.attention, head, []
    closed = (len(k) - a.sinks) // a.chunk
    spans = [slice(a.sinks + j * a.chunk, a.sinks + (j + 1) * a.chunk) for j in range(closed)]
    pool = [(k[s] @ heads.pool_key[0] + heads.pool_place[0]).softmax(0) for s in spans]
    sums = [(w @ k[s], w @ v[s]) for w, s in zip(pool, spans, strict=True)]
    scale = q.shape[-1] ** -0.5
    beta = (-1 / heads.decay[0].exp()).exp()
    for i, query in enumerate(q):
        start = a.sinks + max(i - a.window + 1 - a.sinks, 0) // a.chunk * a.chunk
        seen = [t for t in range(i + 1) if t < a.sinks or t >= start]
        at = torch.arange(len(k))
        logits = [turn(query, torch.tensor(i)) @ turn(k[t], at[t]) * scale for t in seen]
        values = [v[t] for t in seen]
        out_of_window = sums[: (start - a.sinks) // a.chunk]
        edge = turn(query, torch.tensor(a.window))
        for key, value in out_of_window:
            together = math.log(max(len(out_of_window) / a.crowd, 1))
            logits.append(edge @ key * scale + heads.bias[0, h] + query @ heads.route[0, h] * scale - together)
            values.append(value)
        for m in range(a.horizons if out_of_window else 0):
            weights = beta[m] ** torch.arange(len(out_of_window) - 1, -1, -1)
            weights = weights / weights.sum()
            key = sum(w * one for w, (one, _) in zip(weights, out_of_window, strict=True))
            logits.append(edge @ key * scale + heads.bias[1, h] + query @ heads.route[1, h] * scale)
            values.append(sum(w * one for w, (_, one) in zip(weights, out_of_window, strict=True)))
        out.append(torch.stack(logits).softmax(0) @ torch.stack(values))
    return torch.stack(out)


def test_it_is_what_the_docstring_says() -> None:
    torch.manual_seed(0)
    attention = MKA(window=7, sinks=2, chunk=3, recall=0, horizons=2, crowd=5)
    heads = attention.build(Shape(heads=2, kv_heads=1, head_dim=8, layer=0, layers=1, context=100))
    assert heads.bias[0].tolist() == pytest.approx([math.log(3)] * 2) and not heads.bias[1:].any()
    quiet = replace(attention, start=0.2).build(heads.shape)
    assert quiet.bias.flatten().tolist() == pytest.approx([math.log(0.2)] * 4)
    with torch.no_grad():
        for weight in heads.parameters():
            weight.add_(torch.randn_like(weight) * 0.5)
        q, k, v = torch.randn(1, 2, 31, 8), torch.randn(1, 1, 31, 8), torch.randn(1, 1, 31, 8)
        call = AttentionCall(
            q=q,
            k=k,
            v=v,
            number=torch.arange(31)[None],
            before=0,
            normalise=lambda q, k: (q, k),
            rotate=lambda x, at: turn(x, at[:, None].float()),
            scale=8**-0.5,
        )
        found = heads(call, None)
        for head in range(2):
            assert torch.allclose(found[0, head], by_definition(heads, q[0, head], k[0, 0], v[0, 0], head), atol=1e-5)


def test_what_is_recalled_is_the_chunk_that_answers() -> None:
    """One old key lies along the query, far away: with recall its value is found, without it is not."""
    torch.manual_seed(0)
    shape = Shape(heads=1, kv_heads=1, head_dim=8, layer=0, layers=1, context=200)
    q, k, v = torch.randn(1, 1, 64, 8) * 0.1, torch.randn(1, 1, 64, 8) * 0.1, torch.zeros(1, 1, 64, 8)
    q[..., -1, :], k[..., 14, :], v[..., 14, :] = 9.0, 9.0, 1.0
    shares_of = {}
    for recall in (0, 1):
        heads = MKA(window=8, sinks=2, chunk=4, recall=recall, horizons=0).build(shape)
        heads.usage = {}
        call = AttentionCall(
            q=q,
            k=k,
            v=v,
            number=torch.arange(64)[None],
            before=0,
            normalise=lambda q, k: (q, k),
            rotate=lambda x, at: x,
            scale=1.0,
        )
        out = heads(call, None)[0, 0, -1]
        assert bool((out > 0.99).all()) == bool(recall)
        shares_of[recall] = shares(heads.usage)
    assert shares_of[1]["recalled"][0] > 0 and "recalled" not in shares_of[0]
    assert sum(share[0] for share in shares_of[1].values()) == pytest.approx(1)


def test_bytes_on_the_compute_tier_are_a_seventh_at_32k() -> None:
    shape = Shape(heads=9, kv_heads=3, head_dim=64, layer=0, layers=30, context=32768)
    said = MKA().build(shape).formula(32768, 4)
    assert said["device"] <= 0.15 * 2 * 3 * 64 * 4 * 32768
    assert said["host"] == pytest.approx(2 * 3 * 64 * 4 * 32768, rel=0.07)


@pytest.mark.parametrize(("codec", "limit"), [("raw", 0.0), ("int8", 0.1)])
def test_the_long_term_level_in_a_store(tmp_path, codec: str, limit: float) -> None:
    model = retrofit(plain(), MKA(window=8, sinks=2, chunk=4, recall=2))
    ids, cache = tokens(2, 50), DynamicCache()
    mask = torch.ones_like(ids)
    ids[1, :7], mask[1, :7] = 0, 0
    asked = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, past_key_values=DynamicCache()).logits
        beams = model.generate(ids, num_beams=2, **asked)
        keep_far(model, f"disk:{tmp_path}?codec={codec}")
        found = model(ids, attention_mask=mask, past_key_values=cache).logits
    assert (found - expected)[mask.bool()].abs().max() <= limit
    sizes = held(cache)
    assert set(sizes) == {"device", "store"} and sizes["store"] > 0
    if codec == "raw":
        assert torch.equal(model.generate(ids, num_beams=2, **asked), beams)


def test_a_lost_page_is_an_error_and_not_a_wrong_answer() -> None:
    model, cache = retrofit(plain(), MKA(window=8, sinks=2, chunk=4, recall=2)), DynamicCache()
    keep_far(model, "host:?max=6KiB")
    with pytest.raises(StoreError, match="no longer in the store"), torch.no_grad():
        model(tokens(2, 60), past_key_values=cache)


def test_usage_adds_up() -> None:
    model = stir(retrofit(plain(), MKA(window=8, sinks=2, chunk=4, recall=2)))
    with watch(model) as layers, torch.no_grad():
        model(tokens(2, 40))
    for layer in layers:
        means = shares(layer)
        assert set(means) == {"local", "session", "means", "recalled"}
        assert torch.tensor(list(means.values())).sum(0).tolist() == pytest.approx([1.0] * 6, abs=1e-4)


@pytest.mark.parametrize("wrong", [{"window": 0}, {"chunk": 0}, {"recall": -1}, {"original": True}, {"session": False}])
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(PolicyError):
        MKA(**wrong)


def test_numbers_that_do_not_fit_the_model() -> None:
    with pytest.raises(PolicyError, match="longer than the model's context"):
        retrofit(plain(), MKA(window=600))
    with pytest.raises(PolicyError, match="more than can leave"):
        retrofit(plain(), MKA(window=256, chunk=64, recall=9))
    with pytest.raises(AttachError, match="no long-term level"):
        keep_far(retrofit(plain(), MKA(recall=0)), "host:")
