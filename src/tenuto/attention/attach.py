"""``retrofit``: put an attention into a transformers model, for good; ``load`` a folder that such a model was saved to.

    model = retrofit(model, MKA(window=512))
    for name, weight in added(model).items(): ...      # train these alone, or all
    model.save_pretrained(folder)
    model = load(folder)

The projections, norms and all other weights stay the model's own, under their own names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from tenuto.attention.cache import state_in
from tenuto.attention.policy import Attention, Call, Heads, Rotate, Shape
from tenuto.discover import methods, parse
from tenuto.errors import AttachError, InputError, ModelError

__all__ = ["Retrofitted", "added", "attention_of", "load", "retrofit", "watch"]

NAME, FIELD = "tenuto_attention", "tenuto_attention"


def _padding(*args: Any, attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """What the model hands down as mask: the padding of all columns ``[batch, columns]``, None without any."""
    return attention_mask


class Retrofitted(nn.Module):
    """A model's attention layer with its own projections and the :class:`Heads` of an attention in between."""

    def __init__(self, old: Any, heads: Heads, rotary: nn.Module) -> None:
        super().__init__()
        for name, child in old.named_children():
            self.add_module(name, child)
        self.heads = heads
        self.layer_idx, self.head_dim, self.scaling = old.layer_idx, old.head_dim, old.scaling
        self.num_key_value_groups, self.config = old.num_key_value_groups, old.config
        self._rotary = (rotary,)  # in a tuple: it is the decoder's, and not to be saved here
        self._apply_rotary = sys.modules[type(old).__module__].apply_rotary_pos_emb

    def _forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        position_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Hidden states ``[batch, tokens, channels]`` to the same, and None for the weights, which are never whole."""
        batch, tokens, _ = hidden_states.shape
        split: Any = (batch, tokens, -1, self.head_dim)
        q, k, v = (project(hidden_states).view(split).transpose(1, 2) for project in self._projections())
        state = None if past_key_values is None else state_in(past_key_values, self.layer_idx, self.heads)
        before = state.seen if state else 0
        number = _numbers(attention_mask, batch, before, tokens, position_ids, q.device)
        if state is not None and state.count is not None and len(state.count) != batch:
            raise AttachError(
                f"The cache holds {len(state.count)} rows and {batch} were given. Give one cache per batch."
            )
        call = Call(
            q=q,
            k=k,
            v=v,
            number=number,
            before=before,
            normalise=self._normalise,
            rotate=self._rotation(),
            scale=self.scaling,
        )
        out = self.heads(call, state)
        if state is not None:
            state.seen, state.count = before + tokens, number[:, -1] + 1
        project: Any = self.o_proj
        return project(out.transpose(1, 2).reshape(batch, tokens, -1)), None

    forward = _forward  # models hand down options of their own, which change nothing here

    def _projections(self) -> tuple[Any, Any, Any]:
        return self.q_proj, self.k_proj, self.v_proj

    def _normalise(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        norms: Any = dict(self.named_children())
        return (norms["q_norm"](q), norms["k_norm"](k)) if "q_norm" in norms else (q, k)

    def _rotation(self) -> Rotate:
        """Rotate at given numbers; angles are kept for one call, since queries and keys have the same."""
        angles: list[torch.Tensor] = []

        def rotate(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            if not angles or angles[0] is not at:
                angles[:] = at, *self._rotary[0](x, at.clamp(min=0))
            turned: torch.Tensor = self._apply_rotary(x, x[:, :1], *angles[1:])[0]
            return turned

        return rotate


def _numbers(
    mask: torch.Tensor | None,
    batch: int,
    before: int,
    tokens: int,
    position_ids: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """The number of each new token in its row, from the padding mask ``[batch, before + tokens]``."""
    columns = torch.arange(before, before + tokens, device=device)[None].expand(batch, -1)
    if mask is None:
        if position_ids is not None and bool((position_ids.diff(dim=-1) != 1).any()):
            raise InputError(
                "Positions with gaps came without an attention mask, as for several sequences packed into one row. "
                "Give one sequence a row, or a mask of ones."
            )
        return columns
    if mask.dim() != 2 or mask.shape[-1] < before + tokens:
        raise InputError(
            f"An attention mask of shape {tuple(mask.shape)} was given for {before + tokens} columns. Give one of "
            f"({batch}, {before + tokens}), 0 for padding."
        )
    real = mask[:, : before + tokens].bool()
    padding = (real.cumsum(-1) == 0).sum(-1, keepdim=True)
    if before + tokens > 1 and before and not bool(real[:, before:].logical_or(columns < padding).all()):
        raise InputError("The mask has padding after real tokens, in a cache. Pad on the left.")
    return columns - padding


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
    AttentionInterface.register(NAME, sdpa_attention_forward)  # for the lookup alone: no layer is left that calls it
    AttentionMaskInterface.register(NAME, _padding)
    model.set_attn_implementation(NAME)
    setattr(config, FIELD, str(attention))
    return model


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


def load(folder: str | Path, attention: Attention | None = None) -> Any:
    """A retrofitted model from the folder it was saved to, in evaluation mode.

    Args:
        attention: what it is expected to have, None for whatever it has.

    Raises:
        ModelError: no such folder, a plain model, another attention than expected, or weights that do not fit.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json. Give one that save_pretrained wrote.")
    config = AutoConfig.from_pretrained(folder)
    text = getattr(config.get_text_config(decoder=True), FIELD, None)
    if text is None:
        raise ModelError(f"{folder} holds a plain model. Load it with transformers, then retrofit it.")
    if attention is not None and text != str(attention):
        raise ModelError(f"{folder} was trained with {text}, not {attention}. Give that, or another folder.")
    setattr(config.get_text_config(decoder=True), FIELD, None)
    policy = cast(Attention, parse(text, methods(Attention)))
    model = retrofit(AutoModelForCausalLM.from_config(config, dtype=config.dtype), policy)
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys)
    if lost := [name for name in missing if name not in tied] + list(unexpected):
        raise ModelError(
            f"{folder}: weights do not fit {text}: {', '.join(lost[:3])}. Train it again, or restore them."
        )
    model.tie_weights()
    return model.eval()
