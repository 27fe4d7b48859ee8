"""A model with a policy attached, as ``attach`` yields it: its caches, and one step of its decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError, InputError
from tenuto.kv.cache import KVCache
from tenuto.kv.call import stepping
from tenuto.kv.masks import padding_of
from tenuto.kv.models import Layout
from tenuto.kv.offload.pool import Pool
from tenuto.kv.offload.settings import Prefetch
from tenuto.kv.offload.summary import summary
from tenuto.kv.policy import KVMethod, KVPolicy
from tenuto.kv.saved import load, save
from tenuto.kv.section import opened, phase_in, sections
from tenuto.kv.step import Phase
from tenuto.kv.stores import Joiner, StoredPrefixes
from tenuto.restoring import plain_attention
from tenuto.tiers.tier import Tier

__all__ = ["AttachedRun"]


class AttachedRun:
    """What ``attach`` yields.

    Attributes:
        policy: what was attached; blocks: its choices; budget: what a cache may hold.
        layout: what was found about the model.
        prefixes: where prompts are found and kept; None without a store.
        tier, prefetch: where old entries go, and how they are fetched, under a policy with an index; else None.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        policy: KVPolicy | KVMethod,
        blocks: KVPolicy,
        budget: MemoryBudget,
        *,
        prefixes: StoredPrefixes | None = None,
        tier: Tier | None = None,
        prefetch: Prefetch | None = None,
    ) -> None:
        self.model, self.layout = model, layout
        self.policy, self.blocks, self.budget = policy, blocks, budget
        self.prefixes, self.tier, self.prefetch = prefixes, tier, prefetch
        self._plain = plain_attention(layout.config)
        self._latest: KVCache | None = None
        self._here = threading.local()

    @property
    def last(self) -> KVCache | None:
        """The cache this thread used last, or if it has used none, any other did; None before the first call."""
        mine: KVCache | None = getattr(self._here, "last", None)
        return mine or self._latest

    @last.setter
    def last(self, cache: KVCache | None) -> None:
        self._here.last = self._latest = cache

    def cache(self) -> KVCache:
        """A new, empty cache, to be given as ``past_key_values``: for several turns or questions on one cache."""
        keeper = self.prefixes.keep if self.prefixes else None
        pool = None if self.tier is None else Pool(self.tier, self.prefetch)
        return KVCache(self.blocks, self.budget, self.layout, self._replay, keeper, pool)

    def restore(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> KVCache:
        """A cache that holds the longest prefix of a prompt that the store has; ``generate`` does this by itself.

        Args:
            ids: ``[batch, tokens]``; mask: of the same shape, for padding on the left. Give the model what comes after
                the ``get_seq_length()`` columns of the cache.

        Raises:
            AttachError: no store is attached.
        """
        if self.prefixes is None:
            raise AttachError("There is no store to restore from: attach(model, policy, budget=..., store=...).")
        cache = self.cache()
        self.prefixes.restore(cache, ids, mask)
        return cache

    def save(self, path: Path | str, cache: KVCache | None = None) -> None:
        """Write a cache (by default the last one) to a file, for the same model and policy.

        Raises:
            InputError: there is nothing to save, or the file cannot be written.
        """
        chosen = cache or self.last
        if chosen is None:
            raise InputError("There is no cache yet: run the model on a prompt before saving.")
        save(chosen, path, self.layout.identity.mark())

    def load(self, path: Path | str) -> KVCache:
        """A cache from a file, to be given as ``past_key_values``.

        Raises:
            InputError: no such file, a damaged one, or the cache of another model or policy.
        """
        return load(self.cache(), path, self.layout.identity.mark(), self.model.device)

    def stored(self, ids: torch.Tensor) -> int:
        """How many tokens of a prompt ``[1, tokens]`` the store has, from the first on.

        Raises:
            AttachError: no store is attached.
        """
        if self.prefixes is None:
            raise AttachError("There is no store to look in: attach(model, policy, budget=..., store=...).")
        return self.prefixes.stored(ids)

    def join(self, chunks: Sequence[torch.Tensor], assembler: Joiner, *, store: Any = None) -> KVCache:
        """A cache of chunks one after the other, to be given as ``past_key_values`` with all their ids and a question.

        It is compressed when the question has been read. An attached prefix store keeps nothing of it.

        Args:
            chunks: token ids ``[1, tokens]`` each; the first begins the sequence, with what must stand there.
            assembler: how their caches are joined, for example ``CacheBlend(recompute=0.15)``.
            store: a ``ChunkStore``, where caches of chunks are found, and put if they are not there; None: all are
                computed.

        Raises:
            AttachError: the model has layers that slide, keys that cannot be turned, or the policy's scorer adds up
                attention, which it would not see.
            InputError: no chunk, an empty one, or several rows.
            StoreError: the store does not take a chunk.
        """
        if self.blocks.scorer.observes == "calls":
            raise AttachError(
                f"{type(self.blocks.scorer).__name__} adds up attention, and joined chunks have been attended to by "
                "nobody. Use a policy that looks at the entries or the last queries."
            )
        self.last = cache = self.cache()
        cache.keeper = None  # what is joined is not what the model would have computed
        assembler.join(cache, chunks, store)
        return cache

    @property
    def bytes_held(self) -> int:
        """Bytes the last cache holds, counted from its tensors."""
        return self.last.bytes_held if self.last else 0

    @property
    def bytes_full(self) -> int:
        """Bytes DynamicCache would hold for the same tokens."""
        return self.last.bytes_full if self.last else 0

    def summary(self) -> dict[str, Any]:
        """The last cache in numbers: tokens seen, entries held, bytes held and full, their ratio, most bytes held, and
        under a policy with an index what :func:`tenuto.kv.offload.summary.summary` has."""
        held, full = self.bytes_held, self.bytes_full
        rows = [number for layer in self.last.counts() for row in layer for number in row] if self.last else []
        return {
            "policy": type(self.policy).__name__,
            "budget": str(self.budget),
            "tokens_seen": max(self.last.sequences.seen, default=0) if self.last else 0,
            "entries_per_head": sum(rows) / len(rows) if rows else 0.0,
            "bytes_held": held,
            "bytes_full": full,
            "compression_ratio": full / held if held else 1.0,
            "peak_bytes": self.last.peak if self.last else 0,
            "tokens_restored": self.prefixes.restored if self.prefixes else 0,
            **self._offloaded(),
        }

    def _offloaded(self) -> dict[str, Any]:
        if self.last is None or self.last.pool is None:
            return {}
        return summary(self.last.pool, [layer.paged for layer in self.last.engine])

    @contextmanager
    def prefill(self) -> Iterator[None]:
        """Calls made inside, by this thread, are chunks of one prompt: what they put into a cache is compressed at the
        end, at once. Inside another ``prefill()`` or ``whole()``, that one's end is meant."""
        with opened(self, Phase.DEFERRED) as section:
            yield
        if phase_in(self) is None:
            for cache in section.caches:
                cache.compress()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What calls inside, by this thread, put into a cache is held whole: for questions and answers on a compressed
        context."""
        with opened(self, Phase.ANSWERING):
            yield

    def step(self, original: Callable[..., Any], named: dict[str, Any]) -> Any:
        """One call of the decoder's ``forward``."""
        if plain_attention(config := self.layout.config) != self._plain or config._attn_implementation == self._plain:
            raise AttachError("The model's attention was changed while attached. Leave the `with` block to do so.")
        cache = self._cache_for(named)
        if cache is None:
            return original(**named)
        if _asks(named, self.layout.config, "output_attentions"):
            raise AttachError(
                "Attention weights were asked for (output_attentions), which a cache of ours does not give. Call the "
                "model with use_cache=False, or leave the `with` block."
            )
        ids, positions = named.get("input_ids"), named.get("position_ids")
        given: Any = ids if ids is not None else named.get("inputs_embeds")
        if positions is not None and positions.dim() != 2:
            raise AttachError("Positions of several kinds per token (as multimodal models have) are not supported.")
        mask, masks = padding_of(named.get("attention_mask"), given.shape[1])
        self.last = cache
        for section in sections(self):
            if cache not in section.caches:
                section.caches.append(cache)
        if self.prefixes is not None and cache.keeper is not None and phase_in(self) is not Phase.REPLAY:
            self.prefixes.look(cache, given.shape[1], mask, positions)
        with torch.inference_mode(False):
            cache.begin(given.shape[0], given.shape[1], mask, positions, given.device, phase_in(self))
            if cache.keeps_tokens:
                cache.note(ids)
        with stepping(cache, masks) as call:
            result = original(**named)
        if missing := len(cache.engine) - sum(call.attended.values()):
            raise AttachError(
                f"{missing} of {len(cache.engine)} layers did not attend in this call, so that the cache lacks their "
                "tokens. Layers cannot be skipped while a policy is attached."
            )
        with torch.inference_mode(False):
            cache.finish()
        return result

    def _cache_for(self, named: dict[str, Any]) -> KVCache | None:
        cache, wanted = named.get("past_key_values"), named.get("use_cache")
        if cache is None and not (self.layout.config.use_cache if wanted is None else wanted):
            return None
        if cache is None:
            cache = named["past_key_values"] = self.cache()
        if not isinstance(cache, KVCache) or cache.layout.decoder is not self.layout.decoder:
            kind = "The cache of another model" if isinstance(cache, KVCache) else f"A {type(cache).__name__}"
            raise AttachError(f"{kind} was passed to an attached model. Pass none, or one made by run.cache().")
        return cache

    def _replay(self, cache: KVCache) -> None:
        """Run what the scorer asks for over the cache, one call for all rows each, and take it back."""
        tokens, scorer = cache.sequences.tokens, self.blocks.scorer
        wanted = zip_longest(*[scorer.replay(row[row >= 0].long()) for row in tokens])
        for chunk in wanted:
            width = max(0 if part is None else len(part) for part in chunk)
            ids = tokens.new_zeros(len(chunk), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, part in enumerate(chunk):
                if part is not None and len(part):
                    ids[row, -len(part) :], mask[row, -len(part) :] = part, 1
            last = cache.sequences.positions[:, -1:].long()
            with cache.borrowed(), opened(self, Phase.REPLAY):
                self.layout.decoder(
                    input_ids=ids,
                    attention_mask=torch.cat([(tokens >= 0).long(), mask], 1),
                    position_ids=(last + mask.cumsum(-1)).clamp(min=0),
                    past_key_values=cache,
                    use_cache=True,
                )


def _asks(named: dict[str, Any], config: Any, what: str) -> bool:
    """Whether a call, or the configuration for it, asks for something beside the logits."""
    given = named.get(what)
    return bool(vars(config).get(f"_{what}", vars(config).get(what)) if given is None else given)
