"""ChunkStore: the caches of chunks, kept in a tier under the names of their tokens, for other requests and processes.

A chunk is one page: keys and values of all layers, computed by itself at positions 0, 1, ... Its name is made of the
model's fingerprint, dtype, tokenizer, adapter, tenant and every token, and of a mark that no page of a prefix has.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from tenuto.errors import StoreError
from tenuto.reuse.policy import Layers
from tenuto.tiers.address import open_tier
from tenuto.tiers.codec import finite
from tenuto.tiers.key import page_key
from tenuto.tiers.page import PageFacts, decode, encode
from tenuto.tiers.tier import Tier

__all__ = ["ChunkStore"]

CODEC = "chunk"


class ChunkStore:
    """Chunks in a tier; a page that is damaged counts as missing, and the tier forgets it.

    Attributes:
        tier: where pages are kept; given as a tier or as an address (:mod:`tenuto.tiers.address`).
        tokenizer, adapter, tenant: see :class:`tenuto.tiers.key.KeySpace`.
        hits, misses: chunks that were found, and not, so far.

    Raises:
        InputError: no such address.
    """

    def __init__(self, tier: Tier | str, *, tokenizer: str = "", adapter: str = "", tenant: str = "") -> None:
        self.tier = open_tier(tier) if isinstance(tier, str) else tier
        self.tokenizer, self.adapter, self.tenant = tokenizer, adapter, tenant
        self.hits = self.misses = 0

    def get(
        self,
        chunks: Sequence[Sequence[int]],
        *,
        model: str,
        dtype: torch.dtype,
        sizes: Sequence[tuple[int, int]],
    ) -> list[Layers | None]:
        """The caches of some chunks on the CPU, None where there is none.

        Args:
            chunks: token ids of each; model: the model's name (:class:`tenuto.identity.Identity`).
            dtype: of its keys and values; sizes: KV heads and width of a head, per layer.
        """
        keys = [self._key(chunk, model, dtype) for chunk in chunks]
        pages = zip(keys, chunks, self.tier.get_many(keys), strict=True)
        told = [
            (self._facts(chunk, model, dtype), [(heads, len(chunk), width) for heads, width in sizes])
            for chunk in chunks
        ]
        found = [
            None if data is None else self._read(key, data, facts, shapes)
            for (key, _, data), (facts, shapes) in zip(pages, told, strict=True)
        ]
        self.hits += sum(layers is not None for layers in found)
        self.misses += sum(layers is None for layers in found)
        return found

    def put(self, chunk: Sequence[int], layers: Layers, *, model: str) -> None:
        """Keep the cache of a chunk.

        Raises:
            StoreError: the tier does not take it, for example because the page is larger than the tier.
        """
        tensors = {f"{n}.{name}": x for n, pair in enumerate(layers) for name, x in zip("kv", pair, strict=True)}
        dtype = layers[0][0].dtype
        self.tier.put(self._key(chunk, model, dtype), encode(tensors, self._facts(chunk, model, dtype)))

    def _facts(self, chunk: Sequence[int], model: str, dtype: torch.dtype) -> PageFacts:
        return PageFacts(model=model, dtype=str(dtype), codec=CODEC, start=0, stop=len(chunk))

    def _key(self, chunk: Sequence[int], model: str, dtype: torch.dtype) -> str:
        return page_key(
            model=model,
            tokenizer=self.tokenizer,
            adapter=self.adapter,
            dtype=str(dtype),
            codec=CODEC,
            tokens=chunk,
            start=0,
            tenant=self.tenant,
        )

    def _read(self, key: str, data: bytes, facts: PageFacts, shapes: Sequence[tuple[int, ...]]) -> Layers | None:
        """The layers of a page, if it is this chunk's, of this model, and its numbers are finite."""
        try:
            page = decode(data)
            if page.facts != facts:
                raise StoreError(f"A page says it is {page.facts}, under the key of {facts}.")
            layers = [(page.tensors[f"{n}.k"], page.tensors[f"{n}.v"]) for n in range(len(shapes))]
            for pair, shape in zip(layers, shapes, strict=True):
                for part in pair:
                    if part.shape != shape or str(part.dtype) != facts.dtype or not finite(part):
                        raise StoreError(f"A page of {facts} holds {part.dtype} {tuple(part.shape)}, or is not finite.")
        except (StoreError, KeyError):
            with suppress(StoreError):  # a tier keeps what it has under a key: the next one could not take its place
                self.tier.discard(key)
            return None
        return layers
