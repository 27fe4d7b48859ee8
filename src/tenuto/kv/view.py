"""What a decision of the KV family may look at, and the entries that come out of it.

Shapes: one layer of one batch row is ``[kv_heads, entries, head_dim]``, oldest entry first. Heads may hold different
numbers of entries; shorter ones are padded on the *left* (``held`` is False there), so column -1 is the newest entry of
every head. Query heads are ordered by group: query head ``h * group + g`` reads KV head ``h``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenuto.kv.rope import Rope

__all__ = ["Code", "Entries", "Scored", "View"]

Code = dict[str, torch.Tensor]
"""Encoded entries of one row and head: named tensors, whose storage is what is counted, saved and moved."""


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Entries of one row and KV head in full precision, sorted by ``index``.

    Attributes:
        keys, values: ``[entries, head_dim]``, keys after RoPE at their own position, in the model's dtype.
        index: number of the token in the sequence, padding counted, ``[entries]`` int32; -1: stands for no one token.
        weights: how many tokens each entry stands for, ``[entries]`` float32; None: one each.
        state: running state of the scorer, ``[entries, features]`` float32; None: the scorer keeps none.
    """

    keys: torch.Tensor
    values: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor | None = None
    state: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.keys.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a decision may look at: one layer of one batch row.

    Attributes:
        layer, layers: number of this layer among those that are cached, and how many there are.
        keys, values: ``[kv_heads, entries, head_dim]``; keys after RoPE.
        held: False where a column is only padding of a shorter head, ``[kv_heads, entries]`` bool.
        index: number of the token in the sequence, ``[kv_heads, entries]`` int64.
        positions: RoPE position of each key, ``[kv_heads, entries]`` int64.
        weights: count weights, ``[kv_heads, entries]`` float32.
        state: running state, ``[kv_heads, entries, features]`` float32; no features if the scorer keeps none.
        queries: the last ``probes`` queries after RoPE, oldest first, ``[heads, probes, head_dim]``; there are fewer
            where fewer tokens came since the last compression.
        query_index, query_positions: their numbers in the sequence and RoPE positions, ``[probes]`` int64.
        seen: tokens of this row so far, padding left out.
        scaling: what a logit is multiplied with.
        rope: turns keys and queries; None if this model's rotary embedding cannot be turned.
    """

    layer: int
    layers: int
    keys: torch.Tensor
    values: torch.Tensor
    held: torch.Tensor
    index: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    state: torch.Tensor
    queries: torch.Tensor
    query_index: torch.Tensor
    query_positions: torch.Tensor
    seen: int
    scaling: float
    rope: Rope | None

    @property
    def counts(self) -> torch.Tensor:
        """Entries held per KV head, ``[kv_heads]`` int64."""
        return self.held.sum(-1)

    def attention(self) -> torch.Tensor:
        """Softmax attention of the probe queries on the entries, ``[kv_heads, group, probes, entries]`` float32.

        A probe sees entries up to itself; count weights enter as ``log w``.
        """
        heads = self.keys.shape[0]
        probes = self.queries.float().unflatten(0, (heads, -1))
        logits = torch.einsum("hgqd,hnd->hgqn", probes, self.keys.float()) * self.scaling
        logits = logits + self.weights.log()[:, None, None]
        seen = (self.index[:, None] <= self.query_index[:, None]) & self.held[:, None]
        return logits.masked_fill(~seen[:, None], float("-inf")).softmax(-1).nan_to_num(0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One layer of one row on its way to an allocator: the view, its scores, and what is protected.

    ``scores`` is ``[kv_heads, entries]`` float32 with -inf where nothing is held; ``protected`` is bool: sinks and
    recent window, which are kept whatever they score and are part of the counts an allocator gives.
    """

    view: View
    scores: torch.Tensor
    protected: torch.Tensor
