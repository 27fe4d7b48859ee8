"""What is supported, found structurally: decoder-only transformers models with attention behind the interface."""

from __future__ import annotations

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
from tenuto.kv.traits import attention_calls, rope_of

__all__ = ["LayerSpec", "Layout", "find_layout"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerSpec:
    """One layer of the model.

    Attributes:
        site: if it is cached by us; else ``sliding_layer`` makes transformers' own layer, of ``window`` tokens.
        heads, kv_heads, head_dim: its sizes.
        calls: how often it attends in one step, to keys and values of as many kinds.
    """

    site: Site | None
    sliding_layer: Callable[[], Any]
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    calls: int = 1

    def window_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of a row of so many tokens, if the layer slides."""
        return 0 if self.site else 2 * self.kv_heads * self.head_dim * itemsize * min(tokens, self.window)


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
    def cached(self) -> list[LayerSpec]:
        """The layers cached by us, each as often as it attends in a step."""
        return [spec for spec in self.layers if spec.site for _ in range(spec.calls)]

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


def find_layout(model: Any) -> Layout:
    """The layout of a transformers model.

    Raises:
        AttachError: not such a model, or one whose attention is not the standard one.
    """
    name = type(model).__name__
    _check_model(model, name)
    config: Any = model.config.get_text_config(decoder=True)
    attentions = _attentions(model)
    if not attentions:
        raise AttachError(f"{name} has no attention layers that are told by layer_idx: nothing to cache.")
    kinds, options = get_layer_types_and_kwargs(config)
    _check_kinds(name, config, attentions, kinds)
    decoder = next((m for m in model.modules() if _holds(m, attentions[0])), None)
    if decoder is None:
        raise AttachError(
            f"{name} keeps its layers elsewhere than in a list called `layers`: no policy attaches to it."
        )
    cached = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    specs = []
    for number, (kind, own) in enumerate(zip(kinds, config.per_layer_config, strict=True)):
        attention: Any = attentions[number]
        width = _width(name, own, attention)
        groups = getattr(attention, "num_key_value_groups", 1)
        heads = getattr(attention, "num_heads", None) or own.num_attention_heads  # Laguna: another number in each layer
        site = None
        if kind == "full_attention":
            site = Site(cached.index(number), len(cached), width**-0.5, rope_of(decoder, attention, kind))
        sliding = partial(DynamicSlidingWindowLayer, **options[number])
        calls = attention_calls(type(attention)) if site else 1
        window = options[number].get("sliding_window", 0)
        specs.append(LayerSpec(site, sliding, heads, heads // groups, width, window, calls))
    return Layout(decoder, config, tuple(specs), model.dtype, Identity(decoder))


def _check_model(model: Any, name: str) -> None:
    """Refuse what is no plain transformers decoder, saying what it is."""
    if not isinstance(model, PreTrainedModel):
        inside = model.named_modules() if isinstance(model, nn.Module) else ()
        at = next(((path, type(m).__name__) for path, m in inside if isinstance(m, PreTrainedModel)), None)
        if at is None:
            raise AttachError(f"{name} is no transformers model: KV policies need one with a KV cache.")
        raise AttachError(
            f"{name} is a wrapper around a {at[1]}, which is what a policy attaches to: give its .{at[0]}, and go on "
            "using the wrapper (adapters stay active; compile after attaching)."
        )
    if model.config.is_encoder_decoder:
        raise AttachError(f"{name} is an encoder-decoder: KV policies are for decoders that read their own prompt.")
    if not model._supports_attention_backend:
        raise AttachError(f"{name} does not attend through transformers' attention interface: nothing to cache.")
    if any(m._compiled_call_impl is not None for m in model.modules()):
        raise AttachError(f"{name} is compiled. Attach to it before model.compile(), or load it again.")


def _check_kinds(name: str, config: Any, attentions: dict[int, nn.Module], kinds: list[str]) -> None:
    odd = set(kinds) - {"full_attention", "sliding_attention"}
    reason = ""
    if odd:
        reason = f"layers of the kind {', '.join(sorted(odd))}"
    elif sorted(attentions) != list(range(len(kinds))):
        reason = f"{len(attentions)} attention layers for {len(kinds)} in its configuration (shared or nested layers)"
    elif any("sinks" in dict(module.named_parameters()) for module in attentions.values()):
        reason = "learned sinks"
    elif getattr(config, "use_bidirectional_attention", 0) in (True, "all") or not getattr(config, "is_causal", True):
        reason = "tokens that see later ones (its configuration says that it is not causal)"
    if reason:
        raise AttachError(
            f"{name} has {reason}, which is not supported. Supported: causal attention, full or sliding, with keys and "
            "values of its own in every layer."
        )
    if "full_attention" not in kinds:
        raise AttachError(f"All layers of {name} slide over a window of fixed length: there is nothing to compress.")


def _width(name: str, config: Any, attention: Any) -> int:
    """Channels of a head.

    Raises:
        AttachError: keys and values differ, or nothing says how many there are.
    """
    width = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    latent = getattr(config, "kv_lora_rank", None)
    if latent or not isinstance(width, int):
        reason = "latent attention (MLA), whose keys and values differ in size" if latent else "heads of unknown size"
        raise AttachError(f"{name} has {reason}: it cannot be attached to.")
    return width


def _attentions(model: nn.Module) -> dict[int, nn.Module]:
    """The decoder's attention modules by number: what is called an attention, and was told its layer."""
    numbered = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    grouped = [module for module in numbered if getattr(module, "num_key_value_groups", None) is not None]
    named = [module for module in numbered if type(module).__name__.endswith("Attention")]
    return {int(module.layer_idx): module for module in grouped or named}  # type: ignore[arg-type]


def _holds(module: nn.Module, attention: nn.Module) -> bool:
    """Whether an attention module belongs to one of a module's ``layers``, directly."""
    return any(attention is child for block in _blocks(module) for child in block.children())


def _blocks(module: nn.Module) -> list[nn.Module]:
    layers = dict(module.named_children()).get("layers")
    return list(layers) if isinstance(layers, nn.ModuleList) else []
