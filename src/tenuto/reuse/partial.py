"""Run the model's own layers on some tokens of a sequence, from which fewer and fewer may go on, layer by layer.

The tokens that run attend to all tokens up to themselves: to keys and values that were computed elsewhere, and to those
that are computed on the way and take their place. Besides :mod:`tenuto.kv.attach` this is the only file that touches
``nn.Module``: while it runs, a hook in front of every layer drops the tokens that do not go on, and attention comes
here. Both are gone afterwards, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tenuto.errors import AttachError
from tenuto.kv import interface
from tenuto.restoring import attend_by, hook_until
from tenuto.reuse.policy import Layers, Seen

__all__ = ["run"]


NAME = "tenuto_partial"
Choose = Callable[[Seen], torch.Tensor | None]
"""As :meth:`Assembler.choose`."""


class _Nothing(Exception):
    """No token goes on: the run is over."""


@dataclass(slots=True, eq=False)
class _Run:
    """State of one run: ``rows``, which of the tokens given still run; ``at``, their numbers."""

    layers: Layers
    starts: tuple[int, ...]
    choose: Choose
    at: torch.Tensor
    rows: torch.Tensor
    following: torch.Tensor | None = None

    def narrow(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Hook in front of a layer: of what the decoder gives it, only what goes on."""
        if _current.get(None) is not self:
            return None  # the call of another thread
        hidden = args[0] if args else options["hidden_states"]
        if (chosen := self.following) is not None:
            if not len(chosen):
                raise _Nothing
            hidden, self.rows, self.at, self.following = hidden[:, chosen], self.rows[chosen], self.at[chosen], None
        cos, sin = options["position_embeddings"]
        options["position_embeddings"] = cos[:, self.rows], sin[:, self.rows]
        if (positions := options.get("position_ids")) is not None:
            options["position_ids"] = positions[:, self.rows]
        if args:
            return (hidden, *args[1:]), options
        return args, options | {"hidden_states": hidden}

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Put the new keys and values in place and attend: ``[1, tokens, heads, head_dim]``."""
        held, at = self.layers[layer], self.at
        old = [x[:, at] for x in held]
        for mine, new in zip(held, (keys, values), strict=True):
            mine[:, at] = new[0]
        seen = Seen(layer, scaling, self.starts, at, queries[0], keys[0], values[0], old[0], old[1], held[0])
        self.following = self.choose(seen)
        until = int(at[-1]) + 1
        mask = torch.arange(until, device=at.device) <= at[:, None]
        all_keys, all_values = (x[None, :, :until] for x in held)
        return sdpa(queries, all_keys, all_values, attn_mask=mask, scale=scaling, enable_gqa=True).transpose(1, 2)


_current: ContextVar[_Run] = ContextVar("tenuto_partial_run")


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers calls while a run is on; calls of other threads go on as they would."""
    here = _current.get(None)
    if here is None:
        below: Any = ALL_ATTENTION_FUNCTIONS[interface.NAME]
        result: tuple[torch.Tensor, torch.Tensor | None] = below(
            module, query, key, value, attention_mask, scaling, dropout, **options
        )
        return result
    if dropout or options.get("softcap") is not None:
        raise AttachError("Chunks cannot be joined in training mode with dropout, or for a model that caps its logits.")
    number: Any = module.layer_idx
    return here.attend(number, query, key, value, scaling or query.shape[-1] ** -0.5), None


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """The run masks by itself."""
    below: Any = ALL_MASK_ATTENTION_FUNCTIONS[interface.NAME]
    made: torch.Tensor | None = below(*args, **options) if _current.get(None) is None else None
    return made


@torch.no_grad()
def run(
    decoder: Any, tokens: torch.Tensor, at: torch.Tensor, layers: Layers, starts: Sequence[int], choose: Choose
) -> None:
    """Compute the keys and values of some tokens and put them into ``layers``.

    Args:
        decoder: the module whose ``forward`` is one step, of an attached model; all its layers attend in full.
        tokens: ids of the whole sequence ``[all]``; at: numbers of the tokens that run, sorted.
        layers: what is known of the whole sequence; where the tokens of ``at`` stand it is overwritten.
        starts: see :class:`Seen`; choose: asked once per layer.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    here = _Run(layers, tuple(starts), choose, at, torch.arange(len(at), device=at.device))
    with ExitStack() as stack:
        for layer in decoder.layers:
            hook_until(stack, layer, here.narrow)
        attend_by(stack, decoder, NAME)
        stack.callback(_current.reset, _current.set(here))
        stack.enter_context(suppress(_Nothing))
        decoder(input_ids=tokens[at][None], position_ids=at[None], use_cache=False)
