"""CacheBlend: the tokens that deviate most, and no others; a partial run equals the plain formula."""

from __future__ import annotations

import pytest
import torch
from reuse_kv import chunks, entries, gap

from tenuto.errors import PolicyError
from tenuto.reuse.policies.cacheblend import CacheBlend
from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.reuse.policies.full import FullRecompute
from tenuto.testing.kv import TOLERANCE, TinyLM

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST = chunks()[0].shape[1]


def changed(new: torch.Tensor, old: torch.Tensor) -> list[int]:
    return [int(n) for n in (new - old).abs().amax((0, 2)).nonzero()[:, 0]]


def test_the_tokens_that_deviate_most_are_run_in_all_later_layers() -> None:
    model = TinyLM()
    turned, exact, blended = (entries(model, a) for a in (Concatenate(), FullRecompute(), CacheBlend(recompute=0.2)))
    behind = turned[0][0].shape[1] - FIRST
    deviation = (exact[1][1] - turned[1][1]).square().sum((0, 2))[FIRST:]
    wanted = sorted(int(n) + FIRST for n in deviation.topk(round(0.2 * behind)).indices)
    assert 0 < len(wanted) < behind / 2
    assert changed(blended[2][1], turned[2][1]) == wanted
    assert gap(blended[:2], exact[:2]) < TOLERANCE


@torch.no_grad()
def test_a_partial_run_is_the_formula() -> None:
    """Layer 2 of the chosen tokens by hand, from the hidden states that layer 1 gets."""
    model = TinyLM()
    turned, blended = entries(model, Concatenate()), entries(model, CacheBlend(recompute=0.2, check=0))
    ids = torch.cat(chunks(), 1)
    chosen = changed(blended[1][1], turned[1][1])
    block, positions = model.model.layers[1], torch.arange(ids.shape[1])[None]
    hidden = model.model(ids, output_hidden_states=True).hidden_states[1][:, chosen]
    cos, sin = model.model.rotary_emb(hidden, positions)
    normed = block.input_layernorm(hidden)[0]
    attention = block.self_attn
    queries = (normed @ attention.q_proj.weight.T).view(len(chosen), 4, 32).transpose(0, 1)
    half = torch.cat([-queries[..., 16:], queries[..., :16]], -1)
    queries = queries * cos[0, chosen] + half * sin[0, chosen]
    keys, values = (x.repeat_interleave(2, 0) for x in blended[1])
    logits = (queries @ keys.mT * 32**-0.5).masked_fill(positions > torch.tensor(chosen)[:, None], float("-inf"))
    mixed = (logits.softmax(-1) @ values).transpose(0, 1).reshape(len(chosen), -1)
    hidden = hidden[0] + mixed @ attention.o_proj.weight.T
    hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    following = model.model.layers[2]
    wanted = (following.input_layernorm(hidden) @ following.self_attn.v_proj.weight.T).view(len(chosen), 2, 32)
    assert torch.allclose(blended[2][1][:, chosen], wanted.transpose(0, 1), atol=1e-4)


def test_more_is_nearer() -> None:
    model = TinyLM()
    exact = entries(model, FullRecompute())
    far = [gap(entries(model, CacheBlend(recompute=share)), exact) for share in (0.0, 0.5, 1.0)]
    assert far[0] > far[2]
    assert far[1] > far[2]
    assert far[2] < TOLERANCE


def test_numbers_are_checked() -> None:
    for wrong in ({"recompute": 1.5}, {"recompute": -0.1}, {"check": -1}):
        with pytest.raises(PolicyError, match="is not allowed"):
            CacheBlend(**wrong)  # type: ignore[arg-type]
