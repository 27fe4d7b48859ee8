"""Between a cache and a store of prefixes: what is loaded before a prefill, and what is kept after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tenuto.errors import AttachError
from tenuto.identity import autocast
from tenuto.kv.cache import KVCache
from tenuto.kv.models import Layout
from tenuto.kv.policy import ALL, KVPolicy
from tenuto.reuse.prefix import ModelPages, Stretch
from tenuto.tiers.codec import finite

if TYPE_CHECKING:
    from tenuto.reuse.prefix import PrefixStore

__all__ = ["Prefixes"]


class Prefixes:
    """A store, for one attached model.

    Attributes:
        restored, saved: tokens loaded and tokens given to the store so far, all rows together.

    Raises:
        AttachError: the model's layers differ or slide, its rotary embedding depends on the length, or the policy's
            scores need the queries of every token.
    """

    def __init__(self, store: PrefixStore, model: Any, layout: Layout, policy: KVPolicy) -> None:
        shapes = {(spec.site is None, spec.kv_heads, spec.head_dim) for spec in layout.layers}
        if len(shapes) > 1 or layout.layers[0].site is None:
            raise AttachError("A prefix store needs a model whose layers all attend in full, with heads of one size.")
        told = getattr(getattr(layout.decoder, "rotary_emb", None), "rope_type", None)
        kinds = set(told.values()) if isinstance(told, dict) else {told}
        if long := kinds & {"dynamic", "longrope"}:
            raise AttachError(
                f"Keys under {long.pop()} rotary embedding depend on the length of the text: attach no store."
            )
        if policy.probes >= ALL or policy.scorer.observes == "calls":
            raise AttachError(
                f"{type(policy.scorer).__name__} scores by the attention of every token, so no prefix can be left "
                "out. Attach no store, or use a policy that looks at the entries or the last queries."
            )
        self.store, self.model, self.layout = store, model, layout
        self.leave = max(policy.probes, 1)
        (_, heads, width), self.restored, self.saved = shapes.pop(), 0, 0
        self.sizes = (len(layout.layers), heads, width)
        store.check()
        layout.identity.mark()

    def origin(self) -> str | None:
        """The model's name as it is now; None, with one warning, if nothing can be kept or loaded.

        Raises:
            StoreError: the store was closed.
        """
        self.store.check()
        if autocast(self.model.device):
            self.store.fault("Under autocast a model computes other numbers: nothing is kept or loaded.")
            return None
        try:
            return self.layout.identity.mark()
        except AttachError as error:
            self.store.fault(f"Nothing is kept or loaded. {error}")
            return None

    def shelf(self, origin: str) -> ModelPages:
        """The pages of the model under a name it has, or had."""
        return self.store.shelf(origin, self.layout.dtype, sizes=self.sizes)

    def stored(self, ids: torch.Tensor) -> int:
        """How many tokens of a prompt ``[1, tokens]`` are stored, from the first on."""
        origin = self.origin()
        return 0 if origin is None else self.shelf(origin).match(ids[0].tolist())

    def look(self, cache: KVCache, new: int, mask: torch.Tensor | None, positions: torch.Tensor | None) -> None:
        """A forward call of ``new`` tokens per row is about to be made: note who computes them, or that nobody may
        keep them, because the model was changed on the way or the mask leaves out more than padding on the left.

        Raises:
            AttachError: padded rows that came from the store go on at other positions.
        """
        rows = cache.sequences
        padded = mask is not None and not bool(mask.bool().all())
        if padded and rows.loaded and positions is None:
            raise AttachError(
                "Padded rows from a store stand at the positions that generate() gives them. Give the rest theirs: "
                "position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]."
            )
        if rows.origin is None or (new == 1 and rows.columns and not padded):
            return
        origin = self.origin()
        if rows.columns and rows.origin != origin:
            origin = None
        if padded and mask is not None:
            seen = mask.bool()
            before = seen[:, : rows.columns] if seen.shape[1] == rows.columns + new else None
            if (
                before is None
                or bool((seen.cummax(1).values != seen).any())
                or (rows.columns > 0 and bool((before != (rows.tokens >= 0)).any()))
            ):
                origin = None
        rows.origin = origin

    @torch.no_grad()
    def restore(
        self, cache: KVCache, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None
    ) -> int:
        """Fill an empty cache with the longest stored prefix of a prompt; how many columns that is.

        At least one token of every row, and as many as the policy's scorer looks at, are left to be computed. Rows of
        a batch are filled up to the same column.

        Args:
            ids: ``[batch, columns]``; mask: of the same shape, 0 for padding on the left; None: no padding.
            positions: where tokens are to stand, if that was said: only from 0 on, without gaps, can be served.

        Raises:
            StoreError: the store was closed.
        """
        origin = self.origin()
        if origin is None or (positions is not None and not _usual(positions, mask)):
            return 0
        columns, shelf = ids.shape[1], self.shelf(origin)
        pads = [0] * len(ids) if mask is None else [columns - int(row.sum()) for row in mask]
        if mask is not None and any(bool(row[:gap].any()) for row, gap in zip(mask, pads, strict=True)):
            return 0  # padding on the right
        limit, read, found = columns - self.leave, dict[tuple[int, ...], Stretch | None](), []
        for row, gap in zip(ids.tolist(), pads, strict=True):
            wanted = tuple(row[gap : max(limit, gap)])
            if wanted not in read:  # beams are rows of one prompt
                read[wanted] = shelf.read(wanted)
            found.append((gap, read[wanted]))
        stop = min(gap + (0 if stretch is None else stretch.keys.shape[2]) for gap, stretch in found)
        held = [max(stop - gap, 0) for gap in pads]
        if not any(held):
            return 0
        given = ids[:, :stop].clone()
        for row, gap in enumerate(pads):
            given[row, :gap] = -1
        where = ((given >= 0).cumsum(-1) - 1).clamp(min=0)
        cache.fill(given, where, self._joined(found, held, stop, ids.device))
        cache.sequences.origin, cache.sequences.loaded = origin, stop
        cache.level = max(stretch.level for _, stretch in found if stretch is not None)
        self.restored += sum(held)
        return stop

    def _joined(
        self, found: list[tuple[int, Stretch | None]], held: list[int], stop: int, device: torch.device
    ) -> list[tuple[torch.Tensor, ...]]:
        """Per layer, keys and values ``[batch, kv_heads, stop, head_dim]`` of all rows."""
        parts = [(count, stretch) for count, (_, stretch) in zip(held, found, strict=True)]
        if len(parts) == 1 and parts[0][0] == stop and parts[0][1] is not None:  # one row without padding
            keys, values = (part[:, None, :, :stop].to(device) for part in parts[0][1][:2])
            return list(zip(keys, values, strict=True))
        some = next(stretch for _, stretch in parts if stretch is not None)
        layers, heads, _, width = some.keys.shape
        whole = some.keys.new_zeros(2, layers, len(parts), heads, stop, width)
        for row, (count, stretch) in enumerate(parts):
            if count and stretch is not None:
                whole[0, :, row, :, stop - count :] = stretch.keys[:, :, :count]
                whole[1, :, row, :, stop - count :] = stretch.values[:, :, :count]
        return list(zip(*whole.to(device), strict=True))

    def size(self, ids: torch.Tensor) -> tuple[int, int]:
        """Bytes of a prompt's pages ``[1, tokens]``, all levels together, and how many of its tokens can be loaded."""
        origin, tokens = self.origin(), ids[0].tolist()
        if origin is None:
            return 0, 0
        shelf = self.shelf(origin)
        return shelf.size(tokens), shelf.match(tokens[: max(len(tokens) - self.leave, 0)])

    @torch.no_grad()
    def keep(self, cache: KVCache) -> None:
        """Give the store what it lacks of a cache that is about to be compressed.

        Only entries that are as they were computed, by the model as it is now, on a prefix that was complete and from
        position 0 on: nothing after an eviction.
        """
        rows = cache.sequences
        if not rows.origin or not _intact(cache) or rows.origin != self.origin():
            return
        shelf = self.shelf(rows.origin)
        for row, count in enumerate(rows.seen):
            valid = rows.tokens[row] >= 0
            tokens, where = rows.tokens[row][valid].tolist(), rows.positions[row][valid]
            whole = len(tokens) == count and torch.equal(
                where, torch.arange(count, device=where.device).to(where.dtype)
            )
            wanted = shelf.missing(tokens, cache.level) if whole else 0
            if not wanted:
                continue
            stretch = Stretch(_copied(cache, row, "keys", wanted), _copied(cache, row, "values", wanted), cache.level)
            if stretch.keys.dtype != shelf.dtype or not (finite(stretch.keys) and finite(stretch.values)):
                continue
            self.store.behind(shelf, tokens[:wanted], stretch)
            self.saved += wanted


def _usual(positions: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether every token that counts stands behind those before it, the first at 0."""
    counted = torch.ones_like(positions) if mask is None else mask.to(positions.dtype)
    if positions.dim() != 2 or counted.shape[1] != positions.shape[1]:
        return False
    return bool((((counted.cumsum(-1) - 1) == positions) | (counted == 0)).all())


def _intact(cache: KVCache) -> bool:
    """Whether every entry is held as it was computed, by a model that saw all tokens before it."""
    helds = [layer.held for layer in cache.engine]
    paged = any(layer.paged is not None and layer.paged.used for layer in cache.engine)
    if paged or any(held is None or not held.plain or held.origins for held in helds):
        return False
    rows = cache.sequences.seen
    return all(set(heads) == {seen} for layer in cache.counts() for heads, seen in zip(layer, rows, strict=True))


def _copied(cache: KVCache, row: int, name: str, count: int) -> torch.Tensor:
    """The first keys or values of a row, ``[layers, kv_heads, count, head_dim]`` on the CPU."""
    layers = []
    for layer in cache.engine:
        store = layer.holding().store
        segments = range(row * store.heads, (row + 1) * store.heads)
        layers.append(torch.stack([getattr(store.entries(segment), name)[:count] for segment in segments]))
    return torch.stack(layers).cpu()
