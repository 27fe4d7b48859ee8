"""Full causal attention over keys and values that a cache holds whole: for methods that change what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch.nn.functional import scaled_dot_product_attention

from tenuto.attention.policy import AttentionCall, Heads, Shape, State

__all__ = ["FullHeads", "FullState", "causal", "masked"]


@dataclass(slots=True, eq=False)
class FullState(State):
    """Keys after rotation and values of all columns ``[batch, kv_heads, columns, head_dim]``, None at first."""

    k: torch.Tensor | None = None
    v: torch.Tensor | None = None


def causal(call: AttentionCall, k: torch.Tensor, v: torch.Tensor, state: FullState | None) -> torch.Tensor:
    """Normalise and rotate, add the new columns to the state, attend to all.

    A sequence without padding and without earlier columns goes through the very call of transformers' SDPA attention.

    Args:
        k, v: of the new tokens, before normalisation and rotation ``[batch, kv_heads, tokens, head_dim]``.

    Returns:
        ``[batch, heads, tokens, head_dim]``.
    """
    q, k = call.normalise(call.q, k)
    q, k = call.rotate(q, call.number), call.rotate(k, call.number)
    if state is not None:
        state.k = k = k if state.k is None else torch.cat([state.k, k], 2)
        state.v = v = v if state.v is None else torch.cat([state.v, v], 2)
    asked, padded, mask = q.shape[2], bool((call.number[:, -1] + 1 < k.shape[2]).any()), None
    if padded or 1 < asked < k.shape[2]:
        number = call.number[:, :1] - call.before + torch.arange(k.shape[2], device=k.device)  # of each column
        mask = (number[:, None] <= call.number[..., None]) & (number[:, None] >= 0)
        mask = (mask | ~mask.any(-1, keepdim=True))[:, None]  # padding attends to anything, and nobody looks
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    whole = mask is None and asked > 1
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=call.dropout, scale=call.scale, is_causal=whole, **grouped
    )


def masked(call: AttentionCall) -> torch.Tensor:
    """Raw keys and values side by side, zero for padding ``[batch, kv_heads, tokens, 2 head_dim]``."""
    both = torch.cat([call.k, call.v], -1)
    return both if bool(call.real.all()) else both * call.real[:, None, :, None].to(both.dtype)


class FullHeads(Heads):
    """The plain attention of one layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def state(self) -> FullState:
        """An empty state."""
        return FullState()

    def forward(self, call: AttentionCall, state: State | None) -> torch.Tensor:
        """See :class:`Heads`."""
        return causal(call, call.k, call.v, cast(FullState | None, state))

    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """``2 kv_heads head_dim itemsize tokens``."""
        return {"device": 2 * self.shape.kv_heads * self.shape.head_dim * itemsize * tokens}
