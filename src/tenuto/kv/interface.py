"""What transformers calls in place of its own attention and masks, through the two interfaces it has for that.

Layers of ours attend by themselves. All other layers, and calls without a cache of ours, get what the model attends by
when nothing is attached. What a model asks of its attention and ours does not do is refused, by name.
"""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tenuto.errors import AttachError
from tenuto.kv.call import Call, call, current
from tenuto.kv.engine import EngineLayer
from tenuto.kv.masks import says_no_more
from tenuto.restoring import plain_attention

__all__ = ["NAME", "attention", "mask", "register"]

NAME = "tenuto"
IDLE = (
    {"cache_position", "deterministic", "labels", "layer_idx", "logits_to_keep", "num_items_in_batch"}
    | {"output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings", "position_ids"}
    | {"return_dict", "use_cache"}
)
"""What may be handed to attention and changes nothing in it."""

_lock = threading.Lock()
_users = 0


def register(stack: ExitStack) -> None:
    """Have transformers know our attention until the stack unwinds, and others that asked as well."""
    global _users
    with _lock:
        _users += 1
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, mask)
    stack.callback(_unregister)


def _unregister() -> None:
    global _users
    with _lock:
        _users -= 1
        if not _users:
            AttentionInterface._global_mapping.pop(NAME, None)
            AttentionMaskInterface._global_mapping.pop(NAME, None)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers calls instead of its own attention: ours on layers of ours, the model's own on all others."""
    cache, number = current.get(), getattr(module, "layer_idx", None)
    layer = cache.layers[number] if cache is not None and isinstance(number, int) else None
    if not isinstance(layer, EngineLayer):
        eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
        plain: Any = ALL_ATTENTION_FUNCTIONS.get_interface(plain_attention(vars(module)["config"]), eager)
        result: tuple[torch.Tensor, torch.Tensor | None] = plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
        return result
    if dropout:
        raise AttachError("The model is in training mode with attention dropout. Call model.eval() first.")
    if (here := call.get()) is not None:
        _check(module, query, key, value, attention_mask, options, here)
        layer = _next(module, layer, here)
    with torch.inference_mode(False), torch.no_grad():
        output = layer.attend(query, key, value, scaling or query.shape[-1] ** -0.5, options.get("softcap"))
    if torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value)):
        output = _Forward.apply(output, query, key, value)  # type: ignore[no-untyped-call]
    return output, None


class _Forward(torch.autograd.Function):
    """The output as it is; there is no way back."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise AttachError(
            "Gradients were asked for through a cache, which keeps none of keys and values. Call the model with "
            "use_cache=False, which is plain while attached, or leave the `with` block."
        )


def _check(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    given_mask: torch.Tensor | None,
    options: dict[str, Any],
    here: Call,
) -> None:
    """Refuse what ours does not do.

    Raises:
        AttachError: naming it.
    """
    cache, name, number = current.get(), type(module).__name__, int(module.layer_idx)
    asked = {option for option, given in options.items() if given is not None and given is not False}
    if odd := sorted(asked - IDLE - {"softcap", "is_causal"}):
        raise AttachError(f"{name} asks its attention for {', '.join(odd)}, which a cache of ours does not do.")
    spec = cache.layout.layers[number]
    wanted, given = (spec.kv_heads, spec.head_dim, spec.head_dim), (key.shape[1], key.shape[-1], value.shape[-1])
    if wanted != given:
        raise AttachError(
            f"Layer {number} of {name} has {given[0]} KV heads, with keys of {given[1]} and values of {given[2]} "
            f"channels; {wanted[0]} heads of {wanted[1]} were expected. Such layers cannot be cached."
        )
    causal = options.get("is_causal") is not False and vars(module).get("is_causal", True) is not False
    if given_mask is None and not causal and not here.causal and query.shape[2] > 1:
        raise AttachError(f"{name} is not causal (tokens see later ones): it cannot be cached. Use it plain.")
    if given_mask is not None and not any(given_mask is one for one in here.masks):
        valid = cache.valid()
        if valid is None or not says_no_more(given_mask, valid):
            raise AttachError(
                f"{name} was given a mask that is not the causal one of a padded batch (tokens that see later ones, "
                "packed sequences, a bias): it cannot be cached. Use it plain for this input."
            )
        here.masks.append(given_mask)


def _next(module: Any, layer: EngineLayer, here: Call) -> EngineLayer:
    """The layer, or the twin whose turn it is."""
    before = here.attended.get(module.layer_idx, 0)
    here.attended[module.layer_idx] = before + 1
    if before > len(layer.twins):
        raise AttachError(f"{type(module).__name__} attends {before + 1} times in one call: it cannot be cached.")
    return layer.twins[before - 1] if before else layer


def mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """Our attention needs no causal mask; all other masks are the model's own, and are looked at when they arrive."""
    cache, here = current.get(), call.get()
    plain: Any = ALL_MASK_ATTENTION_FUNCTIONS[plain_attention(options["config"])]
    if cache is None or here is None:
        made: torch.Tensor | None = plain(*args, **options)
        return made
    causal = options.get("mask_function", causal_mask_function) is causal_mask_function
    here.causal |= causal
    if causal and len(cache.engine) == len(cache.layers):
        return None
    if not causal:
        options["allow_is_bidirectional_skip"] = False  # so that what is not causal is seen to be
    made = plain(*args, **options)
    if causal and made is not None:
        here.masks.append(made)
    return made
