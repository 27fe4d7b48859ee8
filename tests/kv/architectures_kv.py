"""Tiny random models of every architecture the KV engine supports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

SIZE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def build(config: Any, model: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: build(tf.LlamaConfig(**SIZE), tf.LlamaForCausalLM),
    "mistral": lambda: build(tf.MistralConfig(**SIZE, sliding_window=None), tf.MistralForCausalLM),
    "qwen2": lambda: build(tf.Qwen2Config(**SIZE), tf.Qwen2ForCausalLM),
    "qwen3": lambda: build(tf.Qwen3Config(**SIZE, head_dim=16), tf.Qwen3ForCausalLM),
    "gemma3": lambda: build(
        tf.Gemma3TextConfig(
            **SIZE,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
        ),
        tf.Gemma3ForCausalLM,
    ),
    "phi3": lambda: build(tf.Phi3Config(**SIZE), tf.Phi3ForCausalLM),
    "mixtral": lambda: build(
        tf.MixtralConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2), tf.MixtralForCausalLM
    ),
    "qwen3_moe": lambda: build(tf.Qwen3MoeConfig(**SIZE, head_dim=16, **EXPERTS), tf.Qwen3MoeForCausalLM),
    "olmoe": lambda: build(tf.OlmoeConfig(**SIZE, num_experts=4, num_experts_per_tok=2), tf.OlmoeForCausalLM),
}
