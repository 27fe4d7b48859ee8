"""One compression: look at a layer, score, allocate, select, reduce, encode; then turn keys to where they are attended.

Everything is decided per batch row, so a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tenuto.errors import PolicyError
from tenuto.kv.entries import Encoded, Held, Store
from tenuto.kv.policy import Code, Codec, Entries, KVPolicy, Scored, View
from tenuto.kv.rope import Rope
from tenuto.kv.trivial import Uniform

__all__ = ["Probes", "Site", "commit", "look", "plan", "scored", "settle", "turn"]


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """The last queries of one row: ``queries [heads, probes, head_dim]`` and their numbers ``index [probes]`` int64."""

    queries: torch.Tensor
    index: torch.Tensor

    def last(self, count: int) -> Probes:
        """The newest of them, at most ``count``."""
        start = max(self.index.shape[0] - count, 0)
        return Probes(self.queries[:, start:], self.index[start:])


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What does not change about a layer: its number among the cached ones, logit scale and rotary embedding."""

    layer: int
    layers: int
    scaling: float
    rope: Rope | None


def _left_padded(parts: Sequence[torch.Tensor], fill: float) -> torch.Tensor:
    longest = max(part.shape[0] for part in parts)
    if all(part.shape[0] == longest for part in parts):
        return torch.stack(list(parts))
    out = parts[0].new_full((len(parts), longest, *parts[0].shape[1:]), fill)
    for row, part in enumerate(parts):
        out[row, longest - part.shape[0] :] = part
    return out


def look(
    held: Held, row: int, site: Site, *, positions: torch.Tensor, seen: int, probes: Probes, encoded: bool = True
) -> View:
    """The view of one row; ``positions`` are those of all its tokens so far, ``[columns]``.

    ``encoded`` False leaves encoded entries out.
    """
    store = held.store
    segments = range(row * store.heads, (row + 1) * store.heads)
    whole = held if encoded else replace(held, encoded=[None] * len(held.encoded))
    keys = [whole.all_keys(s) for s in segments]
    for at, segment in enumerate(segments):
        if segment in held.origins:
            origin = held.origins[segment]
            keys[at] = torch.cat([origin, keys[at][len(origin) :]])
    padded = _left_padded(keys, 0.0)
    lengths = torch.tensor([len(part) for part in keys], device=padded.device)
    longest = padded.shape[1]
    index = _left_padded([whole.column(s, "index") for s in segments], -1).long()  # type: ignore[misc]
    ones = [torch.ones(len(part), device=padded.device) for part in keys]
    weights = [one if (w := whole.column(s, "weights")) is None else w for s, one in zip(segments, ones, strict=True)]
    state = [whole.column(s, "state") for s in segments]
    return View(
        layer=site.layer,
        layers=site.layers,
        keys=padded,
        values=_left_padded([whole.all_values(s) for s in segments], 0.0),
        held=torch.arange(longest, device=padded.device) >= longest - lengths[:, None],
        index=index,
        positions=positions.long()[index.clamp(min=0)],
        weights=_left_padded(weights, 1.0),
        state=_left_padded([one[:, None][:, :0] if p is None else p for p, one in zip(state, ones, strict=True)], 0.0),
        queries=probes.queries,
        query_index=probes.index,
        query_positions=positions.long()[probes.index],
        seen=seen,
        scaling=site.scaling,
        rope=site.rope,
    )


def _asked(policy: KVPolicy, view: View) -> bool:
    """Whether the queries that a policy judges by are there: a row that got padding alone has none."""
    return bool(view.query_index.numel()) or not policy.scorer.probes


def scored(policy: KVPolicy, view: View) -> Scored:
    """A view with its scores: those of the scorer, and of a row that had no query since the last time, the newest."""
    scores = policy.scorer.score(view) if _asked(policy, view) else view.index
    scores = scores.float().masked_fill(~view.held, float("-inf"))
    return Scored(view, scores, policy.selector.protected(view))


def plan(policy: KVPolicy, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
    """What is kept of each layer: classes ``[kv_heads, entries]`` uint8; ``total`` entries may be held together.

    Raises:
        PolicyError: a joint allocator gave out more than there is, or the selector another number than it was given.
    """
    heads = sum(layer.scores.shape[0] for layer in layers)
    kept = []
    allocator = policy.allocator if _asked(policy, layers[0].view) else Uniform()
    wanted = allocator.allocate(layers, max(total, 0))
    held = [layer.view.counts for layer in layers]
    if policy.losers.extra and any(bool((w.to(h.device) < h).any()) for w, h in zip(wanted, held, strict=True)):
        wanted = allocator.allocate(layers, max(total - heads * policy.losers.extra, 0))  # what losers become
    given = sum(int(counts.sum()) for counts in wanted)
    if policy.allocator.joint and given > max(total, heads * policy.floor):
        raise PolicyError(f"{type(policy.allocator).__name__} gave out more entries than the budget of {total}.")
    for layer, counts in zip(layers, wanted, strict=True):
        least = layer.protected.sum(-1)
        counts = torch.minimum(torch.maximum(counts.to(least.device), least), layer.view.counts)
        classes = policy.selector.select(layer, counts) * layer.view.held
        if not torch.equal((classes > 0).sum(-1), counts):
            raise PolicyError(f"{type(policy.selector).__name__} kept another number of entries than it was given.")
        kept.append(classes)
    return kept


def commit(held: Held, policy: KVPolicy, kept: Mapping[int, tuple[View, View, torch.Tensor]]) -> Held:
    """The layer after a compression of some rows.

    Args:
        kept: per row, its view, its view without encoded entries, and the classes ``[kv_heads, entries]`` kept.
    """
    store = held.store
    segments: list[Entries] = []
    encoded = list(held.encoded)
    classes: dict[int, torch.Tensor] = {}
    for row in range(store.rows):
        mine = range(row * store.heads, (row + 1) * store.heads)
        if row not in kept:
            segments += [store.entries(segment) for segment in mine]
            continue
        _, plain, chosen = kept[row]
        wide = plain.keys.shape[1]
        recent = (chosen[:, chosen.shape[1] - wide :] > 0) & plain.held
        segments += policy.losers.reduce(plain, recent)
        for head, segment in enumerate(mine):
            older = encoded[segment]
            if older is not None and held.codec is not None:
                start = chosen.shape[1] - held.length(segment)
                at = chosen[head, start : start + len(older)].nonzero()[:, 0]
                encoded[segment] = _take(held.codec, older, at) if len(at) else None
            if policy.selector.classes > 1 and len(segments[segment]) == int(recent[head].sum()):
                classes[segment] = chosen[head, chosen.shape[1] - wide :][recent[head]]
    origins = {s: keys for s, keys in held.origins.items() if s // store.heads not in kept}
    after = Held(Store(store.rows, store.heads, store.features, segments), held.codec, encoded, origins)
    return settle(after, classes, {row: view.queries for row, (view, _, _) in kept.items()})


def _take(codec: Codec, older: Encoded, at: torch.Tensor) -> Encoded:
    if len(at) == len(older):
        return older
    rest = (None if part is None else part[at] for part in (older.weights, older.state))
    return Encoded(codec.take(older.code, at), older.index[at], *rest)


def turn(held: Held, policy: KVPolicy, rows: Mapping[int, View]) -> None:
    """Turn the first keys of each head to where they are attended; ``rows`` are views of the rows just compressed."""
    turned = policy.positioner.turned
    for row, view in rows.items():
        if not turned or view.rope is None or int(view.counts.min()) <= turned:
            continue
        shift = policy.positioner.shift(view)
        if not bool(shift.any()):
            continue
        for head in range(held.store.heads):
            segment = row * held.store.heads + head
            keys = held.store.entries(segment).keys[:turned]
            held.origins[segment] = keys.clone()
            keys.copy_(view.rope.rotate(keys, shift[head]))


def settle(held: Held, classes: Mapping[int, torch.Tensor], probes: Mapping[int, torch.Tensor]) -> Held:
    """Encode whole pages of the oldest full-precision entries, as far as the codec's residual allows.

    Args:
        classes: precision classes of a segment's full-precision entries, where a selection has just made them.
        probes: queries ``[heads, probes, head_dim]`` per row; a codec that wants some encodes no row without.
    """
    codec, store = held.codec, held.store
    if codec is None:
        return held
    flush = [max(length - codec.residual, 0) // codec.page * codec.page for length in store.lengths]
    if codec.probes:
        asked = {row for row, queries in probes.items() if queries.shape[1]}
        flush = [count if segment // store.heads in asked else 0 for segment, count in enumerate(flush)]
    if not any(flush):
        return held
    rest, encoded = [], list(held.encoded)
    for segment, count in enumerate(flush):
        part = store.entries(segment)
        rest.append(_slice(part, count, len(part)))
        if not count:
            continue
        row, head = divmod(segment, store.heads)
        queries = probes[row].unflatten(0, (store.heads, -1))[head] if codec.probes else None
        marks = classes[segment][:count] if segment in classes else None
        code = codec.encode(part.keys[:count], part.values[:count], classes=marks, queries=queries)
        encoded[segment] = _joined(codec, encoded[segment], _slice(part, 0, count), code)
    return Held(Store(store.rows, store.heads, store.features, rest), codec, encoded, held.origins)


def _slice(part: Entries, start: int, stop: int) -> Entries:
    pieces = (part.keys, part.values, part.index, part.weights, part.state)
    return Entries(*(None if piece is None else piece[start:stop] for piece in pieces))  # type: ignore[arg-type]


def _joined(codec: Codec, older: Encoded | None, part: Entries, code: Code) -> Encoded:
    new = Encoded(
        code,
        part.index.clone(),
        None if part.weights is None else part.weights.clone(),
        None if part.state is None else part.state.clone(),
    )
    if older is None:
        return new
    weights: torch.Tensor | None = None
    if new.weights is not None or older.weights is not None:
        ones = new.index.new_ones
        both = [ones(len(e), dtype=torch.float32) if e.weights is None else e.weights for e in (older, new)]
        weights = torch.cat(both)
    state = None if older.state is None or new.state is None else torch.cat([older.state, new.state])
    return Encoded(codec.join(older.code, new.code), torch.cat([older.index, new.index]), weights, state)
