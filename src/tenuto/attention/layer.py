"""A model's attention layer with another attention in it, as :func:`tenuto.attention.attach.retrofit` puts it there."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from tenuto.attention.cache import state_in
from tenuto.attention.numbering import check_mask, check_positions, numbers
from tenuto.attention.policy import AttentionCall, Heads, Rotate, State
from tenuto.errors import AttachError

__all__ = ["Retrofitted"]


class Retrofitted(nn.Module):
    """A model's attention layer with its own projections and the :class:`Heads` of an attention in between."""

    def __init__(self, old: Any, heads: Heads, rotary: nn.Module) -> None:
        super().__init__()
        for name, child in old.named_children():
            self.add_module(name, child)
        self.heads = heads
        self.layer_idx, self.head_dim, self.scaling = old.layer_idx, old.head_dim, old.scaling
        self.num_key_value_groups, self.config = old.num_key_value_groups, old.config
        self.attention_dropout: float = getattr(old, "attention_dropout", 0.0)
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
        if options.get("output_attentions", self.config.output_attentions):
            raise AttachError(
                "output_attentions=True was asked for of a retrofitted model, where attention weights are never whole. "
                "Leave it out; tenuto.attention.watch(model) counts how much attention each level gets."
            )
        batch, tokens, _ = hidden_states.shape
        split: Any = (batch, tokens, -1, self.head_dim)
        q, k, v = (project(hidden_states).view(split).transpose(1, 2) for project in self._projections())
        state = None if past_key_values is None else state_in(past_key_values, self.layer_idx, self.heads)
        before = state.seen if state else 0
        if state is not None and state.count is not None and len(state.count) != batch:
            raise AttachError(
                f"The cache holds {len(state.count)} rows and {batch} were given. Give one cache per batch."
            )
        number = self._numbers(attention_mask, batch, tokens, position_ids, state, q.device)
        call = AttentionCall(
            q=q,
            k=k,
            v=v,
            number=number,
            before=before,
            normalise=self._normalise,
            rotate=self._rotation(),
            scale=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        out = self.heads(call, state)
        if state is not None:
            state.seen, state.count = before + tokens, number[:, -1] + 1
        project: Any = self.o_proj
        return project(out.transpose(1, 2).reshape(batch, tokens, -1)), None

    forward = _forward  # models hand down options of their own, which change nothing here

    def _numbers(
        self,
        mask: torch.Tensor | None,
        batch: int,
        tokens: int,
        position_ids: torch.Tensor | None,
        state: State | None,
        device: torch.device,
    ) -> torch.Tensor:
        """The number of each new token in its row; the first layer looks at what was given, for all of them."""
        before = state.seen if state else 0
        number = numbers(mask, batch, before, tokens, device)
        if self.layer_idx == 0:
            check_mask(mask, number, before, state)
            shift = check_positions(position_ids, mask, number, before, state)
            if state is not None:
                state.shift = shift
        return number

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
