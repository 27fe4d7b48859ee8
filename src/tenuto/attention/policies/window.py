"""Window: the first few tokens and the last ones, and nothing in between; the baseline that any memory has to beat.

Attention sinks and a sliding window (StreamingLLM, https://arxiv.org/abs/2309.17453), at original positions. It adds no
parameters. The cache holds ``sinks + window - 1`` tokens however long the text is; what has left the window is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.attention.columns import first_tokens, joined, last
from tenuto.attention.policy import Attention, AttentionCall, Heads, Paper, Shape, State
from tenuto.errors import PolicyError

__all__ = ["Window", "WindowHeads", "WindowState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Attention):
    """Sliding window with sinks.

    Attributes:
        window: tokens a query sees, itself included.
        sinks: first tokens of a row that all see.

    Raises:
        PolicyError: window below 1 or sinks below 0.
    """

    window: int = 256
    sinks: int = 4

    baseline: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Efficient Streaming Language Models with Attention Sinks",
        "Xiao, Tian, Chen, Han, Lewis",
        2023,
        "https://arxiv.org/abs/2309.17453",
    )
    trials: ClassVar[tuple[str, ...]] = (
        "window:window=8,sinks=2",
        "window:window=5,sinks=0",
        "short_conv+window:window=8",
    )

    def __post_init__(self) -> None:
        if self.window < 1 or self.sinks < 0:
            raise PolicyError(f"{self} is not allowed: window is 1 or more, sinks 0 or more.")

    def build(self, shape: Shape) -> WindowHeads:
        """The module for one layer; a window longer than the model's context is refused."""
        if self.window > shape.context:
            raise PolicyError(f"window={self.window} is longer than the model's context of {shape.context}. Give less.")
        return WindowHeads(self, shape)


@dataclass(slots=True, eq=False)
class WindowState(State):
    """Rotated keys and values: of the sinks, filled from the left, and of the last columns.

    Attributes:
        sink_k, sink_v: ``[batch, kv_heads, sinks, head_dim]``; k, v: ``[batch, kv_heads, columns, head_dim]``.
    """

    sink_k: torch.Tensor | None = None
    sink_v: torch.Tensor | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None


class WindowHeads(Heads):
    """The window of one layer: in blocks of queries, so that time and memory grow with ``tokens * window``."""

    def __init__(self, attention: Window, shape: Shape) -> None:
        super().__init__()
        self.window, self.sinks, self.shape = attention.window, attention.sinks, shape

    def state(self) -> WindowState:
        """An empty state."""
        return WindowState()

    def forward(self, call: AttentionCall, state: State | None) -> torch.Tensor:
        """See :class:`Heads`."""
        if state is not None and not isinstance(state, WindowState):
            raise TypeError("a state of another attention")
        q, k = call.normalise(call.q, call.k)
        q, k = call.rotate(q, call.number), call.rotate(k, call.number)
        past = state or WindowState()
        keys, values = joined(past.k, k), joined(past.v, call.v)
        number = call.number[:, :1] + torch.arange(keys.shape[2], device=q.device) - (keys.shape[2] - k.shape[2])
        sink_k, sink_v = (
            first_tokens(held, part, call.number, self.sinks)
            for held, part in ((past.sink_k, k), (past.sink_v, call.v))
        )
        out, old = [], keys.shape[2] - k.shape[2]
        for start in range(0, q.shape[2], self.window):
            stop = min(start + self.window, q.shape[2])
            low = max(old + start - self.window + 1, 0)
            part = slice(low, old + stop)
            asked = call.number[:, start:stop]
            seen = number[:, None, part]
            near = (seen <= asked[..., None]) & (seen > asked[..., None] - self.window) & (seen >= self.sinks)
            first = torch.arange(self.sinks, device=q.device) <= asked[..., None]
            mask = torch.cat([first, near], -1)[:, None]
            mask = mask | ~mask.any(-1, keepdim=True)  # padding attends to anything, and nobody looks
            out.append(
                _attend(
                    q[:, :, start:stop],
                    torch.cat([sink_k, keys[:, :, part]], 2),
                    torch.cat([sink_v, values[:, :, part]], 2),
                    mask,
                    call,
                )
            )
        if state is not None:
            state.k, state.v = last(keys, self.window - 1), last(values, self.window - 1)
            state.sink_k, state.sink_v = sink_k, sink_v
        return torch.cat(out, 2)

    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """``2 kv_heads head_dim itemsize (sinks + min(tokens, window - 1))``."""
        entry = 2 * self.shape.kv_heads * self.shape.head_dim * itemsize
        return {"device": entry * (self.sinks + min(tokens, self.window - 1))}


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    """Attention under a boolean mask ``[batch, 1, queries, keys]``, True where it may look."""
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=call.dropout, scale=call.scale, enable_gqa=q.shape[1] != k.shape[1]
    )
