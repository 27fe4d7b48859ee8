"""Eviction while decoding, of all heads of all rows at once: for policies that look at no keys, values and queries.

What stays moves to the front of its segment in one gather. How many entries that is, is known beforehand, so nothing is
read back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenuto.kv.compress import Site
from tenuto.kv.entries import ROOM, Held, Store
from tenuto.kv.policy import KVPolicy, Scored, View

__all__ = ["thin"]


@torch.no_grad()
def thin(held: Held, policy: KVPolicy, site: Site, positions: torch.Tensor, totals: Sequence[int | None]) -> bool:
    """Keep as many entries per row, in place; whether it was done: not if too much of what is reserved were empty.

    Args:
        positions: RoPE position of every token so far, ``[rows, columns]``.
        totals: entries a row may hold, all heads together; None leaves a row as it is.
    """
    store, sure = held.store, policy.selector.sinks + policy.selector.window
    lengths = []
    for segment, length in enumerate(store.lengths):
        total = totals[segment // store.heads]
        lengths.append(length if total is None else min(max(max(total, 0) // store.heads, sure), length))
    room = policy.trigger.room("decode", 0, True) or 0
    if sum(store.sizes) * 4 > (sum(lengths) + (room + ROOM) * len(lengths)) * 5 or min(lengths) <= 0:
        return False
    turned = policy.positioner.turned
    if turned and (site.rope is None or min(lengths) <= turned):
        return False
    view, slots = _together(store, site, positions)
    scores = policy.scorer.score(view).float().masked_fill(~view.held, float("-inf"))
    scored = Scored(view, scores, policy.selector.protected(view))
    kept = policy.selector.select(scored, torch.tensor(lengths, device=slots.device)) * view.held
    order = kept.argsort(dim=-1, descending=True, stable=True)
    store.thin(slots.gather(1, order), lengths)
    if turned:
        _turn(held, policy, site, positions)
    return True


def _together(store: Store, site: Site, positions: torch.Tensor) -> tuple[View, torch.Tensor]:
    """All segments as the heads of one view, and the slot of each column; keys, values and queries are left out."""
    longest, segments = max(store.lengths), len(store.lengths)
    columns = torch.arange(longest, device=store.keys.device)
    held = columns >= longest - store.counts[:, None]
    slots = ((store.ends - longest)[:, None] + columns).clamp_(min=0)
    flat = slots.flatten()
    index = store.index.index_select(0, flat).view(segments, -1).masked_fill(~held, -1).long()
    weights = torch.ones_like(index, dtype=torch.float32) if store.weights is None else store.weights[slots]
    none = store.keys.new_zeros(segments, longest, 0)
    queries, numbers = store.keys.new_zeros(segments, 0, 0), index[0, :0]
    view = View(
        layer=site.layer,
        layers=site.layers,
        keys=none,
        values=none,
        held=held,
        index=index,
        positions=_positions(store, positions, index),
        weights=weights,
        state=none.float() if store.state is None else store.state.index_select(0, flat).view(segments, longest, -1),
        queries=queries,
        query_index=numbers,
        query_positions=numbers,
        seen=0,
        scaling=site.scaling,
        rope=site.rope,
    )
    return view, slots


def _positions(store: Store, positions: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """RoPE positions of tokens ``index [segments, columns]``."""
    wide = index.clamp(min=0).view(store.rows, -1)
    return positions.gather(1, wide).view(index.shape).long()


def _turn(held: Held, policy: KVPolicy, site: Site, positions: torch.Tensor) -> None:
    """Turn the first keys of every segment to where they are attended from now on."""
    store, turned = held.store, policy.positioner.turned
    view, _ = _together(store, site, positions)
    first = (store.ends - store.counts)[:, None] + torch.arange(turned, device=store.keys.device)
    keys = store.keys[first]
    if held.origins:
        known = [held.origins.get(segment) for segment in range(len(store.lengths))]
        keys = torch.stack([keys[segment] if origin is None else origin for segment, origin in enumerate(known)])
    held.origins = dict(enumerate(keys.unbind()))
    if site.rope is not None:
        store.keys[first] = site.rope.rotate(keys, policy.positioner.shift(view))
