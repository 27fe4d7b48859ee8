"""Models that cannot be attached to are refused at attach, for the reason that is so, with the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from size_kv import SIZE

from tenuto import AttachError, MemoryBudget, attach
from tenuto.kv.policy import KVPolicy
from tenuto.testing import TinyLM
from tenuto.testing.kv import tokens


def refused(model: Any) -> str:
    with pytest.raises(AttachError) as error, attach(model, KVPolicy(), budget=MemoryBudget.keep(1.0)):
        pass
    return str(error.value)


def test_wrappers_say_what_to_attach_to() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = TinyLM()

    said = refused(Wrapper())
    assert "wrapper" in said and ".base" in said
    assert "no transformers model" in refused(torch.nn.Linear(2, 2))


def test_compiled_models_say_so() -> None:
    model = TinyLM()
    assert "._orig_mod" in refused(torch.compile(model, backend="eager"))
    model.model.compile(backend="eager")
    assert "compiled" in refused(model)


def test_architectures_are_refused_for_what_they_are() -> None:
    latent = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    parts = {**SIZE, "head_dim": 16, "query_pre_attn_scalar": 16, "eos_token_id": 2}
    bidirectional = tf.LlamaConfig(**SIZE)
    bidirectional.is_causal = False
    sinks = tf.GptOssConfig(**SIZE, head_dim=16, num_local_experts=2, num_experts_per_tok=1)
    mistral = tf.MistralConfig(**SIZE, sliding_window=8)
    for model, words in (
        (tf.MiniCPM3ForCausalLM(tf.MiniCPM3Config(**{**SIZE, "num_key_value_heads": 4}, **latent)), "latent"),
        (tf.T5GemmaForConditionalGeneration(tf.T5GemmaConfig(encoder=parts, decoder=parts)), "encoder-decoder"),
        (tf.LlamaForCausalLM(bidirectional), "later ones"),
        (tf.GptOssForCausalLM(sinks), "sinks"),
        (tf.MistralForCausalLM(mistral), "slide"),
        (tf.BloomForCausalLM(tf.BloomConfig(vocab_size=97, hidden_size=64, n_layer=2, n_head=4)), "interface"),
    ):
        assert words in refused(model), type(model).__name__


@torch.no_grad()
def test_gpt_neox_is_attached() -> None:
    torch.manual_seed(0)
    kept = {name: value for name, value in SIZE.items() if name != "num_key_value_heads"}
    model, ids = tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**kept)).eval(), tokens(20)
    plain = model(ids).logits
    with attach(model, KVPolicy(), budget=MemoryBudget.keep(1.0)) as run:
        found = model(ids).logits
        assert run.bytes_held >= run.bytes_full > 0
    assert float((found - plain).abs().max()) < 1e-5 * float(plain.abs().max())
