"""Tiny models for the tests of this folder."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tenuto.attention import added
from tenuto.attention.policy import AttentionCall, Shape

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

SHAPE = Shape(heads=4, kv_heads=2, head_dim=6, layer=0, layers=1, context=64)  # of a layer by itself


def plain(architecture: str = "llama", seed: int = 0) -> torch.nn.Module:
    """A random model; weights large enough for attention to matter."""
    config, model = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    made = model(config(head_dim=8, **SIZES)).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                weight.mul_(20)
            if "embed_tokens" in name:
                weight[0] = weight[1:].mean(0)  # the padding token may be generated; with zeros all scores tie
            if name.endswith("bias"):
                weight.normal_()
    return made


def stir(model: torch.nn.Module, seed: int = 1, amount: float = 0.5) -> torch.nn.Module:
    """Give the added parameters random values, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in added(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator) * amount)
    return model


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def call(length: int) -> AttentionCall:
    """Random queries, keys and values of one row for a layer of ``SHAPE``, without norm and rotation."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, length, 6, generator=generator) for heads in (4, 2, 2))
    number = torch.arange(length)[None]
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        number=number,
        before=0,
        scale=1.0,
        normalise=lambda q, k: (q, k),
        rotate=lambda x, at: x,
    )
