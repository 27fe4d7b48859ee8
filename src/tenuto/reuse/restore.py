"""Between a cache and a store of prefixes: what is loaded before a prefill, and what is kept after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tenuto.calibration import fingerprint
from tenuto.errors import AttachError
from tenuto.kv.cache import KVCache
from tenuto.kv.models import Layout
from tenuto.kv.policy import ALL, KVPolicy
from tenuto.reuse.prefix import Shelf, Stretch

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
        kinds = getattr(getattr(layout.decoder, "rotary_emb", None), "rope_type", None)
        if kinds in ("dynamic", "longrope"):
            raise AttachError(f"Keys under {kinds} rotary embedding depend on the length of the text: attach no store.")
        if policy.probes >= ALL or policy.scorer.observes == "calls":
            raise AttachError(
                f"{type(policy.scorer).__name__} scores by the attention of every token, so no prefix can be left "
                "out. Attach no store, or use a policy that looks at the entries or the last queries."
            )
        self.store, self.model, self.layout = store, model, layout
        self.leave = max(policy.probes, 1)
        self.mark = fingerprint(layout.decoder)
        self.restored = self.saved = 0

    def shelf(self) -> Shelf:
        """The model's pages, under the adapters that are active now."""
        active = str(self.model.active_adapters()) if getattr(self.model, "_hf_peft_config_loaded", False) else ""
        return self.store.shelf(self.mark, self.model.dtype, active)

    def stored(self, ids: torch.Tensor) -> int:
        """How many tokens of a prompt ``[1, tokens]`` are stored, from the first on."""
        return self.shelf().match(ids[0].tolist())

    @torch.no_grad()
    def restore(self, cache: KVCache, ids: torch.Tensor, mask: torch.Tensor | None) -> int:
        """Fill an empty cache with the longest stored prefix of a prompt; how many columns that is.

        At least one token of every row, and as many as the policy's scorer looks at, are left to be computed. Rows of
        a batch are filled up to the same column.

        Args:
            ids: ``[batch, columns]``; mask: of the same shape, 0 for padding on the left; None: no padding.
        """
        columns, shelf = ids.shape[1], self.shelf()
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
        cache.level = max(stretch.level for _, stretch in found if stretch is not None)
        self.restored += sum(held)
        return stop

    def _joined(
        self, found: list[tuple[int, Stretch | None]], held: list[int], stop: int, device: torch.device
    ) -> list[tuple[torch.Tensor, ...]]:
        """Per layer, keys and values ``[batch, kv_heads, stop, head_dim]`` of all rows."""
        parts = [(count, stretch) for count, (_, stretch) in zip(held, found, strict=True)]
        if len(parts) == 1 and parts[0][1] is not None:
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
        shelf, tokens = self.shelf(), ids[0].tolist()
        return shelf.size(tokens), shelf.match(tokens[: max(len(tokens) - self.leave, 0)])

    @torch.no_grad()
    def keep(self, cache: KVCache) -> None:
        """Give the store what it lacks of a cache that is about to be compressed.

        Only entries that are as they were computed, on a prefix that was complete: nothing after an eviction.
        """
        rows, shelf = cache.sequences, self.shelf()
        if not _intact(cache):
            return
        for row, count in enumerate(rows.seen):
            tokens = rows.tokens[row][rows.tokens[row] >= 0].tolist()
            wanted = shelf.missing(tokens, cache.level) if len(tokens) == count else 0
            if not wanted:
                continue
            stretch = Stretch(_copied(cache, row, "keys", wanted), _copied(cache, row, "values", wanted), cache.level)
            self.store.behind(shelf, tokens[:wanted], stretch)
            self.saved += wanted


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
