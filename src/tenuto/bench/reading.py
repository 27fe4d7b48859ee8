"""A language model reads a context into a cache, plain or under a policy, and answers from copies of that cache."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.kv.attach import AttachedRun, attach
from tenuto.kv.policy import KVMethod, KVPolicy
from tenuto.measure.speed import synchronise
from tenuto.reuse.prefix import PrefixStore
from tenuto.zoo.language import LanguageModel

__all__ = ["CacheEntry", "CacheSize", "Reading", "attached", "new_cache", "plain_bytes", "reading", "whole"]

BINS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """A row of a benchmark: a policy with its budget, or neither for the uncompressed cache.

    Attributes:
        every: compress while decoding too, every so many tokens; None as the policy says.
        store: where prefixes are found and kept; without a policy the cache is then held whole.
    """

    policy: KVMethod | None = None
    budget: MemoryBudget | None = None
    every: int | None = None
    store: PrefixStore | None = None

    @property
    def name(self) -> str:
        """The policy's text, "none" without one."""
        return catalog.text(self.policy) if self.policy else "none"

    @property
    def budget_text(self) -> str:
        """The budget's text, "full" without one."""
        return str(self.budget) if self.budget else "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """What a cache held after a context.

    Attributes:
        bytes_held, bytes_full, peak_bytes: as in :class:`tenuto.records.kv.KVRun`.
        heads: ``[layers][kv_heads]`` entries over tokens; survivors: ``[layers][bins]`` share of tokens kept.
    """

    bytes_held: int
    bytes_full: int
    peak_bytes: int
    heads: list[list[float]]
    survivors: list[list[float]]


class Reading:
    """One context in one cache. Every question is asked of a copy: they do not see each other.

    Attributes:
        cache: as the context left it; logits: ``[vocabulary]`` of the first token after it; seconds: to get there.
    """

    def __init__(self, language: LanguageModel, run: AttachedRun | None, context: torch.Tensor) -> None:
        self.language, self.run = language, run
        self.tokens = context.shape[1]
        self.cache = new_cache(language, run)
        synchronise(language.device)
        start = time.perf_counter()
        self.logits = self._call(context, self.cache)
        self.logits.argmax().item()
        self.seconds = time.perf_counter() - start

    def _call(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits ``[vocabulary]`` float32 after the last of some tokens."""
        with torch.no_grad():
            found = self.language.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return torch.as_tensor(found.logits[0, -1]).float()

    def _whole(self) -> AbstractContextManager[None]:
        """Inside, question and answer are held whole: the budget was for the context."""
        return self.run.whole() if self.run else nullcontext()

    def answer(self, question: torch.Tensor | None, most: int) -> torch.Tensor:
        """The tokens a copy of the cache answers greedily, ``[at most most]``; the token that ends it is left out.

        Args:
            question: ``[1, tokens]``, or None if it was in the context.
        """
        cache, said = copy.deepcopy(self.cache), list[int]()
        with self._whole():
            logits = self.logits if question is None else self._call(question, cache)
            while (token := int(logits.argmax())) not in self.language.ends:
                said.append(token)
                if len(said) == most:
                    break
                logits = self._call(torch.tensor([[token]], device=self.language.device), cache)
        return torch.tensor(said, dtype=torch.int64)

    def forced(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits ``[tokens, vocabulary]`` before each of some tokens, which a copy of the cache is given one by one."""
        cache, found = copy.deepcopy(self.cache), [self.logits]
        for token in tokens[:-1]:
            found.append(self._call(torch.tensor([[token]], device=self.language.device), cache))
        return torch.stack(found)

    def greedy(self, count: int) -> list[int]:
        """The next tokens, greedily, on a copy of the cache."""
        cache, said = copy.deepcopy(self.cache), [int(self.logits.argmax())]
        while len(said) < count:
            said.append(int(self._call(torch.tensor([[said[-1]]], device=self.language.device), cache).argmax()))
        return said

    def decode_seconds(self, count: int) -> float:
        """Seconds per decoded token on a copy of the cache: of the processor, or by the clock on an accelerator."""
        cache, on_cpu = copy.deepcopy(self.cache), self.language.device.type == "cpu"
        now = time.process_time if on_cpu else time.perf_counter
        token = self.logits.argmax().reshape(1, 1)
        token = self._call(token, cache).argmax().reshape(1, 1)  # untimed: room is made once
        synchronise(self.language.device)
        start = now()
        for _ in range(count):
            token = self._call(token, cache).argmax().reshape(1, 1)
        synchronise(self.language.device)
        return (now() - start) / count

    def held(self) -> CacheSize:
        """What the cache holds."""
        if self.run is None:
            size = plain_bytes(self.cache)
            return CacheSize(bytes_held=size, bytes_full=size, peak_bytes=size, heads=[], survivors=[])
        cache = self.cache
        heads = [[count / self.tokens for count in rows[0]] for rows in cache.counts()]
        shares = [self._survivors(layer, len(heads[layer])) for layer in range(len(heads))]
        return CacheSize(
            bytes_held=cache.bytes_held,
            bytes_full=cache.bytes_full,
            peak_bytes=cache.peak,
            heads=heads,
            survivors=shares,
        )

    def _survivors(self, layer: int, heads: int) -> list[float]:
        kept = torch.zeros(self.tokens)
        for head in range(heads):
            numbers = [n for n in self.cache.survivors(layer, 0, head) if n >= 0]
            kept[numbers] = 1
        edges = torch.linspace(0, self.tokens, min(BINS, self.tokens) + 1).long().tolist()
        return [float(kept[a:b].mean()) for a, b in pairwise(edges)]


def new_cache(language: LanguageModel, run: AttachedRun | None) -> Any:
    """An empty cache: the attached policy's, or transformers' DynamicCache."""
    from transformers import DynamicCache

    return run.cache() if run else DynamicCache(config=language.model.config)


def plain_bytes(cache: Any) -> int:
    """Bytes of keys and values in a DynamicCache."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def attached(language: LanguageModel, entry: CacheEntry) -> AbstractContextManager[AttachedRun | None]:
    """A row's policy on the model inside a ``with`` block; None for the uncompressed cache.

    Raises:
        AttachError, InputError, PolicyError: as :func:`tenuto.attach`.
    """
    if entry.policy is None or entry.budget is None:
        if entry.store is None:
            return nullcontext()
        return attach(language.model, KVPolicy(), budget=MemoryBudget.keep(1.0), store=entry.store)
    return attach(language.model, entry.policy, budget=entry.budget, every=entry.every, store=entry.store)


def whole(language: LanguageModel) -> AbstractContextManager[AttachedRun]:
    """A cache of ours that holds all it is given."""
    return attach(language.model, KVPolicy(), budget=MemoryBudget.keep(1.0))


@contextmanager
def reading(language: LanguageModel, entry: CacheEntry, context: torch.Tensor) -> Iterator[Reading]:
    """Read a context ``[1, tokens]`` under a row's policy, which stays attached inside the ``with`` block.

    Raises:
        AttachError, InputError, PolicyError: as :func:`tenuto.attach`.
    """
    with attached(language, entry) as run:
        yield Reading(language, run, context)
