from __future__ import annotations

from math import gcd

import pytest
import torch
from retrofitted import plain, stir, tokens
from torch.nn.attention import flex_attention
from transformers import DynamicCache

from tenuto import catalog
from tenuto.attention import PiAttention, pi_backends, pi_reshape, retrofit
from tenuto.attention.pi_backends import BACKENDS, dense, flex
from tenuto.attention.pi_pattern import Pattern, coprime_strides
from tenuto.attention.pi_reshape import reshape
from tenuto.errors import AttachError, InputError, PolicyError

pytestmark = pytest.mark.usefixtures("one_thread")
SCALE = 0.25
PATTERNS = [
    PiAttention(window=8, stride=3, sinks=2),
    PiAttention(window=5, stride=7, sinks=0, coprime=True, phases=True),
    PiAttention(window=300, stride=64),
    PiAttention(window=4, stride=2, last=20, phases=True),
    PiAttention(window=6, stride=4, last=3),
    PiAttention(window=5, stride=9, variant="single"),
    PiAttention(window=3, stride=4, variant="log", phases=True),
    PiAttention(window=1, stride=1, sinks=0),
]
each = pytest.mark.parametrize("attention", PATTERNS, ids=str)


def given(length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 6, length, 16), (2, 2, length, 16), (2, 2, length, 16), (2, 6, length)]
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)


def union(inputs: tuple[torch.Tensor, ...], pattern: Pattern) -> torch.Tensor:
    """One softmax over the union of both sets, key by key from ``mask_fn`` on numbers."""
    q, k, v, _ = inputs
    seen, length = pattern.mask_fn(), q.shape[2]
    mask = torch.tensor([[[bool(seen(0, h, i, j)) for j in range(length)] for i in range(length)] for h in range(6)])
    k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)


@each
@pytest.mark.parametrize(("length", "fused"), [(1, "cpu"), (3, "cpu"), (61, "cpu"), (257, "cpu"), (61, "none")])
def test_reshape_is_the_reference(
    attention: PiAttention, length: int, fused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pi_reshape, "FUSED", fused)  # without it, what other devices run
    inputs, pattern = given(length), attention.pattern(6, layer=1)
    weight, found = torch.randn(2, 6, length, 16, generator=torch.Generator().manual_seed(1)), []
    for backend in (dense, reshape):
        out, near = backend(*inputs, pattern, SCALE)
        found.append((out, near, torch.autograd.grad(out, inputs, weight)))
    (a, near_a, grads_a), (b, near_b, grads_b) = found
    assert (a - b).abs().max() <= 1e-5 and (near_a - near_b).abs().max() <= 1e-5
    assert all((x - y).abs().max() <= 1e-4 for x, y in zip(grads_a, grads_b, strict=True))


@each
def test_flex_is_the_reference(attention: PiAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # compiling takes a minute
    monkeypatch.setattr(pi_backends, "_compiled", lambda: flex_attention.flex_attention)
    inputs, pattern = given(151), attention.pattern(6)
    with torch.no_grad():
        held = [x.detach() for x in inputs]
        assert (flex(*held, pattern, SCALE)[0] - dense(*inputs, pattern, SCALE)[0]).abs().max() <= 1e-5
    with pytest.raises(InputError, match="no backward"):
        flex(*inputs, pattern, SCALE)


@each
@pytest.mark.parametrize("backend", ["reshape", "dense"])
def test_a_gate_of_zero_is_one_softmax_over_the_union(attention: PiAttention, backend: str) -> None:
    q, k, v, bias = given(23)
    pattern = attention.pattern(6)
    closed = BACKENDS[backend](q, k, v, torch.zeros_like(bias), pattern, SCALE)[0]
    assert (closed - union((q, k, v, bias), pattern)).abs().max() <= 1e-5


def test_the_gate_weighs_two_softmaxes() -> None:
    q, k, v, bias = given(40)
    pattern = PiAttention(window=8, stride=3, sinks=0).pattern(6)
    near, skip = (dense(q, k, v, torch.full_like(bias, far), pattern, SCALE)[0] for far in (40.0, -40.0))
    share = dense(q, k, v, torch.zeros_like(bias), pattern, SCALE)[1].logit()  # lse_near - lse_skip
    gate = (share + bias).sigmoid()[..., None]
    found = reshape(q, k, v, bias, pattern, SCALE)[0]
    assert (found - gate * near - (1 - gate) * skip)[:, :, 10:].abs().max() <= 1e-5
    assert (found - near)[:, :, :8].abs().max() <= 1e-5  # which have no skip


@each
def test_the_sets_are_disjoint_and_as_listed(attention: PiAttention) -> None:
    pattern = attention.pattern(6)
    q, k = torch.arange(80)[:, None], torch.arange(80)[None]
    for head in range(6):
        near, skip = pattern.near(q, k), pattern.skip(pattern.strides[head], pattern.phases[head], q, k)
        assert not (near & skip).any() and (near | (k > q) | (q - k >= pattern.window)).all()
        listed = {79 - offset for offset in pattern.offsets(head, 80) if 79 - offset >= pattern.sinks}
        assert set(skip[79].nonzero().flatten().tolist()) == listed
        if pattern.reach is not None:
            assert all(79 - key <= pattern.reach for key in listed)


def test_strides_are_coprime_over_heads_and_neighbouring_layers() -> None:
    for layer in range(4):
        here, after = coprime_strides(64, 9, layer), coprime_strides(64, 9, layer + 1)
        assert all(gcd(a, b) == 1 for i, a in enumerate(here) for b in (*here[:i], *after))
    assert len({coprime_strides(64, 9, layer) for layer in range(18)}) == 18
    assert all(abs(stride - 64) < 40 for stride in coprime_strides(64, 9, 0))
    assert min(coprime_strides(64, 9, 0, least=60)) >= 60


@pytest.mark.parametrize("text", ["pi:window=512,stride=64", "pi:window=4,stride=1,coprime=false"])
def test_a_pattern_of_everything_is_the_model_itself(text: str) -> None:
    model, ids = plain(), tokens(2, 61)
    with torch.no_grad():
        before, after = model(ids).logits, retrofit(model, catalog.parse(text, "attention"))(ids).logits
    assert (before - after).abs().max() <= 1e-5


def test_a_cache_can_be_cropped_where_it_is_whole() -> None:
    model, ids = stir(retrofit(plain(), PiAttention(window=8, stride=3, sinks=2))), tokens(2, 70)
    cache = DynamicCache()
    with torch.no_grad():
        model(tokens(2, 67), past_key_values=cache)
        model(tokens(2, 63, seed=5)[:, :1], past_key_values=cache)
        cache.crop(-28)
        assert cache.is_croppable and cache.get_seq_length() == 40
        after = model(ids[:, 40:], past_key_values=cache).logits
        whole = model(torch.cat([tokens(2, 67)[:, :40], ids[:, 40:]], 1), use_cache=False).logits
    assert (after - whole[:, 40:]).abs().max() <= 1e-5
    model, cache = retrofit(plain(), PiAttention(window=8, stride=3, last=2)), DynamicCache()
    model(ids, past_key_values=cache)
    assert not cache.is_croppable
    with pytest.raises(AttachError, match="cannot be taken"):
        cache.layers[0].crop(-1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pi:stride=0", "a stride is 1 or more"),
        ("pi:window=0", "window is 1 or more"),
        ("pi:last=-1", "sinks and last 0 or more"),
        ("pi:variant=logs", "Did you mean 'log'"),
        ("pi:backend=flexx", "Did you mean 'flex'"),
        ("pi:variant=log,last=3", "belongs to multiples"),
        ("pi:variant=single,window=256,stride=64", "sees nothing new"),
        ("pi:strid=3", "Did you mean 'stride'"),
        ("pi:stride=x", "a whole number"),
    ],
)
def test_wrong_options_are_refused(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        catalog.parse(text, "attention")


@pytest.mark.parametrize("text", ["pi:window=513", "pi:stride=513"])
def test_more_than_the_context_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="longer than the model's context"):
        retrofit(plain(), catalog.parse(text, "attention"))
