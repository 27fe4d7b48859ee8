"""Small views for pinning a scorer or an allocator on a case computed by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from tenuto.kv.policy import Scored, View


def view_of(keys: torch.Tensor, queries: torch.Tensor | None = None, values: torch.Tensor | None = None) -> View:
    """One layer of one row: ``keys [kv_heads, entries, head_dim]``, probes are the last tokens; logit scale 1."""
    heads, entries, width = keys.shape
    index = torch.arange(entries).expand(heads, -1)
    queries = torch.zeros(heads, 0, width) if queries is None else queries
    last = torch.arange(entries - queries.shape[1], entries)
    return View(
        layer=0,
        layers=1,
        keys=keys,
        values=keys if values is None else values,
        held=torch.ones(heads, entries, dtype=torch.bool),
        index=index,
        positions=index,
        weights=torch.ones(heads, entries),
        state=torch.zeros(heads, entries, 0),
        queries=queries,
        query_index=last,
        query_positions=last,
        seen=entries,
        scaling=1.0,
        rope=None,
    )


def scored_of(scores: list[list[float]], protected: int = 0) -> Scored:
    """Scores of one layer; the last ``protected`` entries of each head are protected."""
    given = torch.tensor(scores)
    mask = torch.zeros_like(given, dtype=torch.bool)
    mask[:, given.shape[1] - protected :] = True
    return Scored(view_of(given[..., None]), given, mask)


def layer_of(seen: int, layer: int, layers: int, protected: int = 0) -> Scored:
    """One of several layers, two heads that hold all ``seen`` tokens, the last ``protected`` of them protected."""
    scored = scored_of([[0.0] * seen] * 2, protected)
    return replace(scored, view=replace(scored.view, layer=layer, layers=layers))
