"""``retrofit``: put an attention into a transformers model, for good; ``load`` a folder that such a model was saved to.

    model = retrofit(model, MKA(window=512))
    for name, weight in added(model).items(): ...      # train these alone, or all
    model.save_pretrained(folder)
    model = load(folder)

The projections, norms and all other weights stay the model's own, under their own names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from tenuto.attention.layer import Retrofitted
from tenuto.attention.policy import Attention, Shape
from tenuto.attention.saved import fill, read_config, read_generation
from tenuto.discover import methods, parse
from tenuto.errors import AttachError, ModelError

__all__ = ["Retrofitted", "added", "attention_of", "load", "retrofit", "watch"]

NAME, FIELD = "tenuto_attention", "tenuto_attention"


def _padding(*args: Any, attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """What the model hands down as mask: the padding of all columns ``[batch, columns]``, None without any."""
    return attention_mask


def retrofit(model: Any, attention: Attention) -> Any:
    """Give every attention layer of a model this attention, in place, and return the model.

    Args:
        model: a decoder-only transformers model with rotary positions and standard projections (Llama, Mistral, Qwen2,
            Qwen3, SmolLM and many others).

    Raises:
        AttachError: another kind of model, or one that is retrofitted already.
        PolicyError: the attention's numbers do not fit the model.
    """
    layers, rotary = _layers(model)
    config = model.config.get_text_config(decoder=True)
    built = []
    for old in layers:
        heads = old.q_proj.out_features // old.head_dim
        shape = Shape(
            heads=heads,
            kv_heads=heads // old.num_key_value_groups,
            head_dim=old.head_dim,
            layer=old.layer_idx,
            layers=len(layers),
            context=config.max_position_embeddings,
        )
        weight = old.q_proj.weight
        built.append(attention.build(shape).to(device=weight.device, dtype=weight.dtype))
    parents = {id(block.self_attn): block for block in model.modules() if "self_attn" in dict(block.named_children())}
    for old, heads in zip(layers, built, strict=True):
        parents[id(old)].self_attn = Retrofitted(old, heads, rotary).train(old.training)
    _own_config(model)  # a configuration may be that of other models too
    for module in model.modules():
        if isinstance(module, Retrofitted):
            module.config = model.config.get_text_config(decoder=True)
    AttentionInterface.register(NAME, sdpa_attention_forward)  # for the lookup alone: no layer is left that calls it
    AttentionMaskInterface.register(NAME, _padding)
    model.set_attn_implementation(NAME)
    setattr(model.config.get_text_config(decoder=True), FIELD, str(attention))
    return model


def _own_config(model: Any) -> None:
    """Give a model, and what it is made of, a copy of its configuration."""
    memo: dict[int, Any] = {}
    model.config = copy.deepcopy(model.config, memo)
    for module in model.modules():
        config = vars(module).get("config")
        if id(config) in memo:
            module.config = memo[id(config)]


def _layers(model: Any) -> tuple[list[Any], nn.Module]:
    """The attention layers, in order, and the rotary embedding."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise AttachError(f"{name} is no transformers model: give one with decoder layers.")
    if attention_of(model) is not None:
        raise AttachError(f"{name} has {attention_of(model)} already. Retrofit the plain model.")
    layers = [m for m in model.modules() if {"q_proj", "k_proj", "v_proj", "o_proj"} <= set(dict(m.named_children()))]
    rotary = next((m.rotary_emb for m in model.modules() if "rotary_emb" in dict(m.named_children())), None)
    config = model.config.get_text_config(decoder=True)
    if not layers or rotary is None or config.is_encoder_decoder or len(layers) != config.num_hidden_layers:
        raise AttachError(f"{name} has no standard decoder attention with rotary positions. Give a model like Llama's.")
    for layer in layers:
        extra = set(dict(layer.named_children())) - {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
        norms = [p.numel() for n, p in layer.named_parameters() if "norm" in n]
        plain = getattr(layer, "sliding_window", None) is None and "sinks" not in dict(layer.named_parameters())
        if extra or any(size != layer.head_dim for size in norms) or not plain:
            raise AttachError(f"{name} has attention that is not standard: sliding, gated, or normalised as a whole.")
    if getattr(rotary, "rope_type", "default") in ("dynamic", "longrope"):
        raise AttachError(f"{name} has rotary positions that depend on the length. Give a model with fixed ones.")
    return layers, rotary


def attention_of(model: Any) -> str | None:
    """The text of the attention a model was retrofitted with, None for a plain model."""
    return getattr(model.config.get_text_config(decoder=True), FIELD, None)


def added(model: Any) -> dict[str, nn.Parameter]:
    """The parameters that :func:`retrofit` added, by name: what a short fine-tune trains."""
    return {name: weight for name, weight in model.named_parameters() if ".self_attn.heads." in name}


@contextmanager
def watch(model: Any) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Count how much attention each level gets, per layer, until the ``with`` block ends: see :attr:`Heads.usage`."""
    layers = [module.heads.attending for module in model.modules() if isinstance(module, Retrofitted)]
    if not layers:
        raise AttachError(f"{type(model).__name__} is a plain model: it has no levels. Retrofit it first.")
    for layer in layers:
        layer.usage = {}
    try:
        yield [layer.usage for layer in layers]  # type: ignore[misc]
    finally:
        for layer in layers:
            layer.usage = None


def load(
    folder: str | Path,
    attention: Attention | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """A retrofitted model from the folder it was saved to, in evaluation mode, with its generation settings.

    Args:
        attention: what it is expected to have, None for whatever it has.
        dtype: of its weights, None for the one they were saved in; device: where they go.

    Raises:
        ModelError: no such folder, a plain model, another attention than expected, an adapter beside the model, or
            files that are damaged or do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    text = getattr(config.get_text_config(decoder=True), FIELD, None)
    if text is None:
        raise ModelError(f"{folder} holds a plain model. Load it with transformers, then retrofit it.")
    if attention is not None and text != str(attention):
        raise ModelError(f"{folder} was trained with {text}, not {attention}. Give that, or another folder.")
    setattr(config.get_text_config(decoder=True), FIELD, None)
    policy = cast(Attention, parse(text, methods(Attention)))
    model = retrofit(AutoModelForCausalLM.from_config(config, dtype=dtype or config.dtype), policy)
    fill(model, folder, text)
    model.generation_config = read_generation(folder) or model.generation_config
    return model.to(device).eval()
