"""What a call or a model asks of its attention is given exactly, or refused by name at that call."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from size_kv import SIZE

from tenuto import AttachError, MemoryBudget, PrefixStore, SnapKV, attach
from tenuto.kv.policy import KVPolicy
from tenuto.testing import TinyLM
from tenuto.testing.kv import tokens

ALL = MemoryBudget.keep(1.0)


def gap(found: torch.Tensor, plain: torch.Tensor) -> float:
    return float((found - plain).abs().max() / plain.abs().max())


def test_gradients_are_refused_through_a_cache_and_exact_without() -> None:
    model, ids = TinyLM(), tokens(20)
    weight = model.model.layers[0].self_attn.k_proj.weight
    model(ids, labels=ids).loss.backward()
    wanted, weight.grad = weight.grad.clone(), None
    with attach(model, KVPolicy(), budget=ALL):
        loss = model(ids, labels=ids).loss
        with pytest.raises(AttachError, match="use_cache=False"):
            loss.backward()
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
    assert torch.equal(weight.grad, wanted)


@pytest.mark.parametrize("how", ["call", "config"])
def test_attention_weights_are_refused_through_a_cache_and_given_without(how: str) -> None:
    model, ids = TinyLM(), tokens(12)
    model.set_attn_implementation("eager")
    options = {"output_attentions": True} if how == "call" else {}
    model.config.output_attentions = how == "config"
    with torch.no_grad(), attach(model, KVPolicy(), budget=ALL):
        with pytest.raises(AttachError, match="output_attentions"):
            model(ids, **options)
        assert len(model(ids, use_cache=False, output_attentions=True).attentions) == 3


@torch.no_grad()
def test_hidden_states_with_a_store_are_those_of_all_tokens() -> None:
    model, ids = TinyLM(), tokens(24)
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 2,
        "do_sample": False,
        "output_hidden_states": True,
        "return_dict_in_generate": True,
    }
    with PrefixStore("host:?max=1MiB", page=8) as store, attach(model, KVPolicy(), budget=ALL, store=store):
        first, second = (model.generate(ids, **options).hidden_states[0][-1] for _ in range(2))
    assert second.shape[1] == 24 and torch.equal(first, second)


@torch.no_grad()
def test_a_mask_that_says_other_things_of_what_is_held_is_refused() -> None:
    model, ids = TinyLM(), tokens(12)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    more = torch.ones(1, 13, dtype=torch.long)
    with attach(model, KVPolicy(), budget=ALL) as run:
        model(ids, attention_mask=mask, past_key_values=(padded := run.cache()))
        model(ids, past_key_values=(full := run.cache()))
        hidden = torch.cat([mask, more[:, :1]], 1)
        for cache, wrong in ((padded, more), (full, hidden), (full, more[:, :5])):
            with pytest.raises(AttachError, match="attention mask"):
                model(ids[:, :1], attention_mask=wrong, past_key_values=cache)
        model(ids[:, :1], attention_mask=hidden, past_key_values=padded)  # what was refused did no harm
        model(ids[:, :1], attention_mask=more, past_key_values=full)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_four_dimensions_are_taken_where_they_are_causal(kind: str) -> None:
    model, ids = TinyLM(), tokens(12, rows=2)
    causal = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    causal[1, :, :, :4] = False
    packed = causal.clone()
    packed[:, :, 8:, :8] = False
    real = causal[:, 0, -1]
    if kind == "float":
        causal, packed = (
            torch.zeros(m.shape).masked_fill(~m, torch.finfo(torch.float32).min) for m in (causal, packed)
        )
    position = (real.cumsum(-1) - 1).clamp(min=0)
    plain = model(ids, attention_mask=causal, position_ids=position).logits
    with attach(model, KVPolicy(), budget=ALL):
        found = model(ids, attention_mask=causal, position_ids=position).logits
        with pytest.raises(AttachError, match="four dimensions"):
            model(ids, attention_mask=packed, position_ids=position)
    assert gap(found[real], plain[real]) < 1e-5


@torch.no_grad()
def test_options_ours_does_not_know_are_refused_by_name() -> None:
    model, ids = TinyLM(), tokens(12)
    with attach(model, KVPolicy(), budget=ALL):
        for option in ("position_bias", "s_aux", "cu_seq_lens_q"):
            with pytest.raises(AttachError, match=option):
                model(ids, **{option: torch.zeros(4)})
        assert len(model(ids, return_dict=False)) == 2
        assert model(ids, logits_to_keep=1).logits.shape[1] == 1


@torch.no_grad()
def test_a_layer_that_is_skipped_is_named() -> None:
    model, ids = TinyLM(), tokens(12)
    with attach(model, KVPolicy(), budget=ALL):
        layer = model.model.layers.pop(1)
        with pytest.raises(AttachError, match="1 of 3 layers did not attend"):
            model(ids)
        model.model.layers.insert(1, layer)


@torch.no_grad()
def test_differential_attention_has_two_kinds_of_values_per_layer() -> None:
    torch.manual_seed(0)
    model = tf.DiffLlamaForCausalLM(tf.DiffLlamaConfig(**SIZE)).eval()
    ids = tokens(20)
    plain = model(ids).logits
    with attach(model, KVPolicy(), budget=ALL) as run:
        model(ids[:, :15], past_key_values=(cache := run.cache()))
        found = model(ids[:, 15:], past_key_values=cache).logits
        assert len(cache.engine) == 4 and len(cache.fork().engine) == 4
    assert gap(found, plain[:, 15:]) < 1e-5


@torch.no_grad()
def test_layers_may_have_heads_of_another_number_each() -> None:
    torch.manual_seed(0)
    size = {**SIZE, "head_dim": 16, "num_attention_heads_per_layer": [4, 8], "layer_types": ["full_attention"] * 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = tf.LagunaConfig(**size, **experts, shared_expert_intermediate_size=32, mlp_layer_types=["dense", "dense"])
    model, ids = tf.LagunaForCausalLM(config).eval(), tokens(20, rows=2)
    plain = model(ids).logits
    with attach(model, KVPolicy(), budget=ALL) as run:
        model(ids[:, :15], past_key_values=(cache := run.cache()))
        assert gap(model(ids[:, 15:], past_key_values=cache).logits, plain[:, 15:]) < 1e-5
    with attach(model, SnapKV(window=8), budget=MemoryBudget.keep(0.5)) as run:
        model(ids, past_key_values=(cache := run.cache()))
        assert cache.counts() == [[[10, 10]] * 2] * 2


@torch.no_grad()
@pytest.mark.parametrize("kind", ["capped", "eager", "sdpa"])
def test_sliding_layers_attend_as_the_plain_model_does(kind: str) -> None:
    torch.manual_seed(0)
    options = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6}
    options["layer_types"] = ["sliding_attention", "full_attention"]
    if kind == "capped":
        model = tf.Gemma2ForCausalLM(tf.Gemma2Config(**SIZE, **options)).eval()
    else:
        model = tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SIZE, **options)).eval()
        model.set_attn_implementation(kind)
    ids = tokens(20)
    plain = model(ids).logits
    with attach(model, KVPolicy(), budget=ALL):
        assert gap(model(ids).logits, plain) < 1e-5


@torch.no_grad()
def test_rows_that_are_all_padding_do_no_harm() -> None:
    model, ids = TinyLM(), tokens(20, rows=2)
    mask = torch.stack([torch.ones(20), torch.zeros(20)]).long()
    plain = model(ids[:1]).logits
    with attach(model, KVPolicy(), budget=MemoryBudget.keep(0.5)):
        assert gap(model(ids, attention_mask=mask).logits[:1], plain) < 1e-5


@torch.no_grad()
def test_layers_without_rotary_positions_are_not_turned() -> None:
    torch.manual_seed(0)
    smollm = tf.SmolLM3Config(**SIZE, no_rope_layers=[1, 0], use_sliding_window=False)
    exaone = tf.Exaone4Config(
        **SIZE, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    )
    cohere = tf.Cohere2Config(**SIZE, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    for config, kind, wanted in (
        (smollm, tf.SmolLM3ForCausalLM, [True, False]),
        (exaone, tf.Exaone4ForCausalLM, [False, False]),
        (cohere, tf.Cohere2ForCausalLM, [False, False]),
        (tf.LlamaConfig(**SIZE), tf.LlamaForCausalLM, [True, True]),
    ):
        with attach(kind(config).eval(), KVPolicy(), budget=ALL) as run:
            ropes = [spec.site is not None and spec.site.rope is not None for spec in run.layout.layers]
        assert ropes == wanted, kind.__name__
