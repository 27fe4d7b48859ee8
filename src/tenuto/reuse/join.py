"""Join chunks into one cache: find or compute their caches, place them, and run again what the assembler asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenuto.errors import AttachError, InputError
from tenuto.identity import autocast
from tenuto.kv.cache import KVCache
from tenuto.kv.models import Layout
from tenuto.reuse.chunks import ChunkStore
from tenuto.reuse.partial import run
from tenuto.reuse.policy import Assembler, Layers

__all__ = ["join"]


@torch.no_grad()
def join(cache: KVCache, chunks: Sequence[torch.Tensor], assembler: Assembler, store: ChunkStore | None) -> None:
    """Fill an empty cache with chunks, in the order given.

    Args:
        chunks: token ids ``[1, tokens]`` each; the first begins the sequence, with what must stand there.
        store: where caches of chunks are found, and put if they are not there.

    Raises:
        AttachError: the cache is not empty, or the model has layers that slide or keys that cannot be turned.
        InputError: no chunk, an empty one, or several rows.
        StoreError: the store does not take a chunk.
    """
    layout = cache.layout
    parts = _checked(chunks)
    _check(layout, assembler, cache)
    tokens = torch.cat(parts)
    starts = [0]
    for part in parts[:-1]:
        starts.append(starts[-1] + len(part))
    if assembler.reads:
        layers = _placed(layout, _chunk_caches(layout, parts, store), starts if assembler.turns else [0] * len(parts))
        first = len(parts[0])
    else:
        layers, first = _blank(layout, tokens), 0
    at = torch.arange(len(tokens), device=tokens.device)
    if assembler.computes and first < len(tokens):
        run(layout.decoder, tokens, at[first:], layers, starts, assembler.choose)
    cache.fill(tokens[None], at[None], [(keys[None], values[None]) for keys, values in layers])


def _checked(chunks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if not chunks:
        raise InputError("No chunk was given to join. Give at least one, as token ids [1, tokens].")
    for chunk in chunks:
        if chunk.dim() != 2 or chunk.shape[0] != 1 or not chunk.shape[1]:
            raise InputError(
                f"A chunk of shape {list(chunk.shape)} was given to join. Give token ids [1, tokens], one row at a "
                "time and at least one token."
            )
    return [chunk[0] for chunk in chunks]


def _check(layout: Layout, assembler: Assembler, cache: KVCache) -> None:
    if cache.sequences.columns:
        raise AttachError("The cache holds something already. Chunks are joined in an empty one.")
    if any(spec.site is None for spec in layout.layers):
        raise AttachError(
            "This model has layers that slide over a window: chunks can be joined only where all attend in full."
        )
    if assembler.turns and any(spec.site is not None and spec.site.rope is None for spec in layout.layers):
        raise AttachError(
            f"{assembler} cannot turn keys of this model's rotary embedding. Give an assembler that turns none."
        )


def _blank(layout: Layout, tokens: torch.Tensor) -> Layers:
    sizes = [(spec.kv_heads, len(tokens), spec.head_dim) for spec in layout.layers]
    dtype = next(layout.decoder.parameters()).dtype
    return [tuple(torch.zeros(size, dtype=dtype, device=tokens.device) for _ in "kv") for size in sizes]  # type: ignore[misc]


def _chunk_caches(layout: Layout, parts: Sequence[torch.Tensor], store: ChunkStore | None) -> list[Layers]:
    """The cache of each chunk by itself, from the store where it has them."""
    model, dtype = "", next(layout.decoder.parameters()).dtype
    known: list[Layers | None] = [None] * len(parts)
    if store is not None and autocast(parts[0].device):
        raise AttachError(
            "Chunks computed under autocast are other numbers than the model's: leave it, or give no store=."
        )
    if store is not None:
        model, sizes = layout.identity.mark(), [(spec.kv_heads, spec.head_dim) for spec in layout.layers]
        known = store.get([part.tolist() for part in parts], model=model, dtype=dtype, sizes=sizes)
    caches = []
    for part, layers in zip(parts, known, strict=True):
        if layers is None:
            layers = _blank(layout, part)
            run(layout.decoder, part, torch.arange(len(part), device=part.device), layers, [0], lambda seen: None)
            if store is not None:
                store.put(part.tolist(), layers, model=model)
        caches.append([(keys.to(part.device), values.to(part.device)) for keys, values in layers])
    return caches


def _placed(layout: Layout, caches: Sequence[Layers], shifts: Sequence[int]) -> Layers:
    """One after the other, keys turned by so many positions per chunk."""
    found = []
    for spec, pairs in zip(layout.layers, zip(*caches, strict=True), strict=True):
        keys = []
        for (mine, _), shift in zip(pairs, shifts, strict=True):
            rope = spec.site.rope if spec.site and shift else None
            keys.append(
                mine if rope is None else rope.rotate(mine, mine.new_full(mine.shape[:2], shift, dtype=torch.float32))
            )
        found.append((torch.cat(keys, 1), torch.cat([values for _, values in pairs], 1)))
    return found
