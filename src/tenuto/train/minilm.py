"""A small decoder from transformers' own classes, the same number of parameters whatever its attention.

Plain attentions are configurations: ``mha``, ``mqa``, ``gqa:kv_heads=2`` (Llama), ``mla:rank=64`` (DeepSeek-V3 with
dense layers only, which caches latents) and ``olmoe:experts=8`` (OLMoE: a mixture of experts). Any other text is an
attention of :mod:`tenuto.attention`, put on the ``mha`` model, or, as ``short_conv+mqa``, on another. What an attention
saves or adds in parameters, the width of the MLP makes up for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tenuto import catalog
from tenuto.attention import retrofit
from tenuto.attention.policy import Attention
from tenuto.errors import InputError, PolicyError, closest

__all__ = ["PLAIN", "SIZES", "Size", "build", "canonical", "is_plain", "parameters", "put_on", "read_size"]

POSITIONS = 65_536
"""The longest sequence a model accepts; rotary positions need no table."""

TOLERANCE = 0.02
"""How far from the budget of parameters a model may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a model is, and how it is trained.

    Attributes:
        layers, width, heads, mlp: of the ``mha`` model. context: tokens of a training row; batch: rows of a step.
        steps: optimiser steps; rate: the highest learning rate.
    """

    name: str
    layers: int
    width: int
    heads: int
    mlp: int
    context: int
    batch: int
    steps: int
    rate: float

    @property
    def head(self) -> int:
        """Channels of a head."""
        return self.width // self.heads


SIZES = {
    size.name: size
    for size in (
        Size(name="tiny", layers=2, width=32, heads=4, mlp=96, context=64, batch=4, steps=20, rate=3e-3),
        Size(name="cpu", layers=3, width=128, heads=4, mlp=352, context=512, batch=4, steps=1600, rate=1e-2),
        Size(name="moe", layers=4, width=192, heads=6, mlp=1536, context=512, batch=4, steps=800, rate=2e-3),
        Size(name="gpu", layers=12, width=768, heads=12, mlp=2048, context=2048, batch=16, steps=4000, rate=6e-4),
    )
}


def read_size(name: str) -> Size:
    """A size by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in SIZES:
        raise InputError(f"size={name} is unknown.{closest(name, SIZES)}")
    return SIZES[name]


def _llama(size: Size, vocabulary: int, mlp: int, kv_heads: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=size.width,
            intermediate_size=mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=kv_heads,
            head_dim=size.head,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _mla(size: Size, vocabulary: int, mlp: int, rank: int) -> Any:
    """Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434): a latent and one rotary key."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=vocabulary,
            hidden_size=size.width,
            intermediate_size=mlp,
            num_hidden_layers=size.layers,
            first_k_dense_replace=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            q_lora_rank=None,
            kv_lora_rank=rank,
            qk_rope_head_dim=size.head // 2,
            qk_nope_head_dim=size.head,
            v_head_dim=size.head,
            num_mtp_layers=0,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _olmoe(size: Size, vocabulary: int, mlp: int, experts: int) -> Any:
    """A mixture of experts (OLMoE, https://arxiv.org/abs/2409.02060), two of which each token takes; all together are
    as wide as the dense MLP."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=vocabulary,
            hidden_size=size.width,
            intermediate_size=mlp // experts,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            num_experts=experts,
            num_experts_per_tok=min(2, experts),
            norm_topk_prob=True,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


PLAIN: dict[str, str | None] = {"mha": None, "mqa": None, "gqa": "kv_heads", "mla": "rank", "olmoe": "experts"}
"""Attentions that are a configuration, with the option each takes."""


def is_plain(attention: str) -> bool:
    """Whether an attention's text names one of :data:`PLAIN`."""
    return attention.partition(":")[0] in PLAIN


def put_on(attention: str) -> Attention | None:
    """The attention of :mod:`tenuto.attention` that a text puts on a model, None for a plain one."""
    front, _ = _parts(attention)
    return _parse(front) if front else None


def canonical(attention: str) -> str:
    """An attention's text as it is recorded, its options checked.

    Raises:
        PolicyError: it is unknown, or an option is one it does not take.
    """
    front, then = _parts(attention)
    if then is None:
        return str(_parse(front))
    _option(then)
    return f"{_parse(front)}+{then}" if front else then


def build(attention: str, size: Size, vocabulary: int, seed: int) -> Any:
    """A model with fresh weights, its number of parameters that of the ``mha`` model within 2 %.

    Raises:
        PolicyError: the attention is unknown, or takes another option.
        InputError: its numbers do not go with the size.
    """
    make = _maker(attention, size, vocabulary)
    budget = parameters(_maker("mha", size, vocabulary)(size.mlp))
    surplus = parameters(make(size.mlp)) - budget
    mlp = size.mlp - 8 * round(surplus / (3 * size.width * size.layers) / 8)
    if mlp < 8:
        raise InputError(f"{attention} has {surplus} parameters too many for a model of size {size.name}.")
    torch.manual_seed(seed)
    model = make(mlp)
    if abs(parameters(model) / budget - 1) > TOLERANCE:
        raise InputError(f"{attention} cannot be given the {budget} parameters of size {size.name} within 2 %.")
    return model


def parameters(model: Any) -> int:
    """Numbers that are trained, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _maker(attention: str, size: Size, vocabulary: int) -> Callable[[int], Any]:
    """A function from the width of the MLP to a model."""
    front, then = _parts(attention)
    if front:
        policy = _parse(front)
        below = _maker(then or "mha", size, vocabulary)
        return lambda mlp: retrofit(below(mlp), policy)
    name, given = attention.partition(":")[0], _option(attention)
    if name == "mla":
        return lambda mlp: _mla(size, vocabulary, mlp, given or size.head * 2)
    if name == "olmoe":
        experts = given or 8
        if size.mlp % experts:
            raise InputError(f"experts={experts} does not divide the {size.mlp} neurons of size {size.name}.")
        return lambda mlp: _olmoe(size, vocabulary, mlp, experts)
    heads = {"mha": size.heads, "mqa": 1, "gqa": given or max(size.heads // 3, 1)}[name]
    if size.heads % heads:
        raise InputError(f"kv_heads={heads} does not divide the {size.heads} heads of size {size.name}.")
    return lambda mlp: _llama(size, vocabulary, mlp, heads)


def _parts(attention: str) -> tuple[str, str | None]:
    """What is put on a model, and the plain attention it has: ``short_conv+mqa`` gives both, others one."""
    front, _, last = attention.rpartition("+")
    return (front, last) if is_plain(last) else (attention, None)


def _option(attention: str) -> int | None:
    """The number behind a plain attention's name.

    Raises:
        PolicyError: it takes no such option, or the value is not a number above zero.
    """
    name, colon, given = attention.partition(":")
    key, _, value = given.partition("=")
    if not colon:
        return None
    allowed = PLAIN[name]
    if key != allowed:
        raise PolicyError(f"{name} does not take {key!r}.{closest(key, [allowed] if allowed else [])}")
    if not value.isdecimal() or int(value) < 1:
        raise PolicyError(f"{attention}: {key} is a whole number above zero, not {value!r}.")
    return int(value)


def _parse(attention: str) -> Attention:
    """An attention of :mod:`tenuto.attention`."""
    names = [part.partition(":")[0] for part in attention.split("+")]
    for name in names:
        if name in PLAIN:
            raise PolicyError(f"{attention}: {name} is a model's own attention, which comes last and once.")
    try:
        return catalog.parse(attention, "attention")
    except PolicyError as error:
        known = catalog.methods("attention")
        if str(error).startswith("Unknown policy") and (odd := [name for name in names if name not in known]):
            raise PolicyError(f"Unknown attention {odd[0]!r}.{closest(odd[0], sorted([*PLAIN, *known]))}") from error
        raise
