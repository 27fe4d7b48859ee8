"""What is supported, found structurally: decoder-only transformers models with attention behind the interface."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer, get_layer_types_and_kwargs

from tenuto.errors import AttachError
from tenuto.identity import Identity
from tenuto.kv.compress import Site
from tenuto.kv.rope import Rope

__all__ = ["LayerSpec", "Layout", "find_layout"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerSpec:
    """One layer of the model: ``site`` if it is cached by us, else ``sliding_layer`` makes transformers' own layer."""

    site: Site | None
    sliding_layer: Callable[[], Any]
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What the engine knows about a model.

    Attributes:
        decoder: the module whose ``forward`` is one step; config: of the text decoder.
        layers: one spec per layer; dtype: of keys and values.
        identity: the name of all that the decoder's numbers depend on.
    """

    decoder: nn.Module
    config: Any
    layers: tuple[LayerSpec, ...]
    dtype: torch.dtype
    identity: Identity

    @property
    def itemsize(self) -> int:
        """Bytes per number of keys and values."""
        return self.dtype.itemsize

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder's layers, in order."""
        return _blocks(self.decoder)

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values one token takes in the cached layers."""
        return sum(2 * spec.kv_heads * spec.head_dim * self.itemsize for spec in self.layers if spec.site)


def _attentions(model: nn.Module) -> dict[int, nn.Module]:
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int) and getattr(module, "num_key_value_groups", None) is not None:
            found[number] = module
    return found


def _rope_of(decoder: nn.Module, attention: nn.Module, kind: str) -> Rope | None:
    """The rotary embedding if its frequencies are fixed and it pairs the halves, as most do; else None."""
    rotary: Any = getattr(decoder, "rotary_emb", None)
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    frequencies = getattr(rotary, f"{kind}_inv_freq", None)
    if frequencies is None:
        frequencies = getattr(rotary, "inv_freq", None)
    kinds = getattr(rotary, "rope_type", None)
    rope_type = kinds.get(kind) if isinstance(kinds, dict) else kinds
    if apply is None or frequencies is None or rope_type in ("dynamic", "longrope"):
        return None
    rope = Rope(frequencies.detach())
    width = 2 * frequencies.numel()
    x = torch.linspace(-1, 1, 2 * width, device=frequencies.device).view(1, 1, 2, width)
    angle = torch.tensor([[3.0, 5.0]], device=frequencies.device)[..., None] * frequencies.float()
    angle = torch.cat([angle, angle], -1)
    turned, _ = apply(x, x, angle.cos(), angle.sin())
    same = torch.allclose(turned[0, 0], rope.rotate(x[0, 0], torch.tensor([3, 5], device=x.device)), atol=1e-4)
    return rope if same else None


def find_layout(model: Any) -> Layout:
    """The layout of a transformers model.

    Raises:
        AttachError: not such a model, or one whose attention is not the standard one.
    """
    if not isinstance(model, PreTrainedModel):
        raise AttachError(f"{type(model).__name__} is no transformers model: KV policies need one with a KV cache.")
    config: Any = model.config.get_text_config(decoder=True)
    attentions = _attentions(model)
    name = type(model).__name__
    if config.is_encoder_decoder or not model._supports_attention_backend or not attentions:
        raise AttachError(
            f"{name} has no standard decoder attention (transformers' attention interface): nothing to cache."
        )
    kinds, options = get_layer_types_and_kwargs(config)
    odd = set(kinds) - {"full_attention", "sliding_attention"}
    gated = any("sinks" in dict(a.named_parameters()) for a in attentions.values())
    if odd or len(attentions) != len(kinds) or gated:
        raise AttachError(
            f"{name} has attention that is not standard: {', '.join(sorted(odd)) or 'learned sinks or shared layers'}. "
            "Supported: full and sliding attention with keys and values per layer."
        )
    if "full_attention" not in kinds:
        raise AttachError(f"All layers of {name} slide over a window of fixed length: there is nothing to compress.")
    decoder = next(m for m in model.modules() if attentions[0] in [getattr(b, "self_attn", None) for b in _blocks(m)])
    cached = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    specs = []
    for number, kind in enumerate(kinds):
        attention: Any = attentions[number]
        heads, width = config.num_attention_heads, attention.head_dim
        site = None
        if kind == "full_attention":
            site = Site(cached.index(number), len(cached), width**-0.5, _rope_of(decoder, attention, kind))
        sliding = partial(DynamicSlidingWindowLayer, **options[number])
        specs.append(LayerSpec(site, sliding, heads, heads // attention.num_key_value_groups, width))
    return Layout(decoder, config, tuple(specs), model.dtype, Identity(decoder))


def _blocks(module: nn.Module) -> list[nn.Module]:
    layers = dict(module.named_children()).get("layers")
    return list(layers) if isinstance(layers, nn.ModuleList) else []
