"""A store of prompts' keys and values, found again by their tokens from the first one on.

    store = tenuto.PrefixStore("disk:~/.cache/tenuto/kv?max=10GiB")
    with tenuto.attach(model, tenuto.SnapKV(), budget=tenuto.MemoryBudget.keep(0.25), store=store) as run:
        model.generate(**inputs)  # a prefix that any process has read before is loaded, the rest is computed

A page holds ``page`` tokens of all layers, under a key that is a digest of the model, its dtype and adapters, the
tenant and every token up to the page's end (:mod:`tenuto.tiers.key`). Whatever goes wrong with a page, it counts as
missing: what comes after it is computed again.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from tenuto.errors import InputError, StoreError
from tenuto.tiers import page as pages
from tenuto.tiers.address import Level, open_levels
from tenuto.tiers.forked import renewed_in_child
from tenuto.tiers.key import KeySpace

if TYPE_CHECKING:
    from tenuto.kv.models import Layout
    from tenuto.kv.policy import KVPolicy
    from tenuto.reuse.restore import Prefixes

__all__ = ["ModelPages", "PrefixStore", "Stretch"]

TOGETHER = 8
"""Pages asked of a tier at a time, while those before them are decoded."""


class Stretch(NamedTuple):
    """What a store has of a prompt, from its first token on.

    ``keys`` and ``values`` are ``[layers, kv_heads, tokens, head_dim]``; ``level`` is the last level that some of it
    came from: what is computed on top of a page that was stored in few bits belongs at that level or below.
    """

    keys: torch.Tensor
    values: torch.Tensor
    level: int


class PrefixStore:
    """Where prompts' pages are kept, by address (:mod:`tenuto.tiers.address`); several models may share it.

    A page is looked for in each level in turn and written to all. Writing goes on behind the model's back: ``flush``
    waits for it, and so does ``close``. Use it as a context manager, or close it.

    Args:
        address: for example ``disk:~/.cache/tenuto/kv?max=10GiB&codec=int8``, or levels that are open already.
        page: tokens per page. A prompt shorter than that is not stored.
        tenant: only who gives the same text finds a page again. For strangers on one store, a long secret each.

    Raises:
        InputError: no such address or codec, or a page of no tokens.
    """

    def __init__(self, address: str | Sequence[Level], *, page: int = 64, tenant: str = "") -> None:
        if page < 1:
            raise InputError(f"A page of {page} tokens was asked for. Give at least 1.")
        self.levels = open_levels(address) if isinstance(address, str) else list(address)
        self.page, self.tenant = page, tenant
        self._warned = False
        self.closed = False
        self.after_fork()
        renewed_in_child(self)

    def after_fork(self) -> None:
        """New threads and locks: a forked child has none of its parent's, and what the parent writes is its own."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="tenuto-store-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tenuto-store-read")
        self._writing: list[Future[None]] = []
        self._mutex = threading.Lock()

    def check(self) -> None:
        """Refuse a store that was closed.

        Raises:
            StoreError: it was.
        """
        if self.closed:
            raise StoreError("The store was closed and is asked for pages. Open it for as long as a model uses it.")

    def of(self, model: Any, layout: Layout, policy: KVPolicy) -> Prefixes:
        """The store as one attached model sees it.

        Raises:
            AttachError: no prefix of this model, or under this policy, can be stored.
        """
        from tenuto.reuse.restore import Prefixes

        return Prefixes(self, model, layout, policy)

    def shelf(
        self, model: str, dtype: torch.dtype, adapter: str = "", sizes: tuple[int, int, int] | None = None
    ) -> ModelPages:
        """The pages of one model.

        Args:
            model: its name (:class:`tenuto.identity.Identity`); dtype: of its cache.
            adapter: what is added to its weights, where the name does not say it.
            sizes: layers, KV heads and width of a head, which every page must have; None: any, but all the same.
        """
        names = [level.codec.label for level in self.levels]
        kind = str(dtype).removeprefix("torch.")
        spaces = [
            KeySpace(model=model, tokenizer="", adapter=adapter, dtype=kind, codec=name, tenant=self.tenant)
            for name in names
        ]
        return ModelPages(self, tuple(spaces), dtype, sizes)

    def behind(self, shelf: ModelPages, tokens: Sequence[int], stretch: Stretch) -> None:
        """Write a stretch in the background; only one is held in memory at a time."""
        self.flush()
        with self._mutex:
            self._writing = [self._writer.submit(shelf.write, tokens, stretch)]

    def flush(self) -> None:
        """Wait until all that was given is written; a page that a tier refused is warned of, once."""
        with self._mutex:
            waiting, self._writing = self._writing, []
        for future in waiting:
            future.result()

    def close(self) -> None:
        """Finish writing and let go of the tiers. What is on disk or on a server stays there."""
        self.closed = True
        self.flush()
        self._writer.shutdown()
        self._reader.shutdown()
        for level in self.levels:
            level.tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fetch(self, level: int, keys: Sequence[str]) -> Iterator[bytes | None]:
        """Pages of one level, some at a time, the next ones on their way while the caller uses these."""
        tier = self.levels[level].tier
        runs = [keys[at : at + TOGETHER] for at in range(0, len(keys), TOGETHER)]
        coming = [self._reader.submit(tier.get_many, run) for run in runs[:1]]
        for number in range(len(runs)):
            ready = coming.pop()
            if number + 1 < len(runs):
                coming.append(self._reader.submit(tier.get_many, runs[number + 1]))
            yield from ready.result()

    def fault(self, message: str) -> None:
        """Warn of a fault, the first time."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"{message} Further faults of this store are not reported.", RuntimeWarning, stacklevel=2)


@dataclass(frozen=True, slots=True)
class ModelPages:
    """One model's pages in a store: ``spaces``, a key space per level; ``sizes`` as of :meth:`PrefixStore.shelf`."""

    store: PrefixStore
    spaces: tuple[KeySpace, ...]
    dtype: torch.dtype
    sizes: tuple[int, int, int] | None = None

    def keys(self, level: int, tokens: Sequence[int]) -> list[str]:
        """The keys of a prompt's whole pages at one level."""
        return list(self.spaces[level].keys(tokens, self.store.page))

    def match(self, tokens: Sequence[int]) -> int:
        """How many tokens from the first on are stored, in whole pages; their data is not read."""
        return len(self._homes(tokens)) * self.store.page

    def _homes(self, tokens: Sequence[int]) -> list[int]:
        """The first level that holds each page, up to the first page that none holds."""
        homes: list[int] = []
        for keys in zip(*(self.keys(level, tokens) for level in range(len(self.spaces))), strict=True):
            held = (n for n, key in enumerate(keys) if self.store.levels[n].tier.contains(key))
            home = next(held, None)
            if home is None:
                break
            homes.append(home)
        return homes

    def read(self, tokens: Sequence[int]) -> Stretch | None:
        """The longest stored prefix of ``tokens``, on the CPU, in whole pages; None if not even one page is there."""
        homes, size = self._homes(tokens), self.store.page
        good, whole = len(homes), list[torch.Tensor]()
        for level in sorted(set(homes)):
            keys = self.keys(level, tokens)
            places = [n for n in range(len(homes) - 1, -1, -1) if homes[n] == level]  # so that its first is used last
            for place, data in zip(places, self.store.fetch(level, [keys[n] for n in places]), strict=True):
                found = self._decode(level, place, keys[place], data)
                if found and not whole:
                    whole = [part.new_empty(*part.shape[:2], len(homes) * size, part.shape[3]) for part in found]
                run = slice(place * size, (place + 1) * size)
                if not found or any(w[:, :, run].shape != part.shape for w, part in zip(whole, found, strict=True)):
                    good = min(good, place)
                    continue
                for to, part in zip(whole, found, strict=True):
                    to[:, :, run] = part
        if not good or not whole:
            return None
        keys_, values = (part[:, :, : good * size] for part in whole)
        return Stretch(keys_, values, max(homes[:good]))

    def _decode(self, level: int, place: int, key: str, data: bytes | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of a page; None if it is missing, or damaged or another's and forgotten."""
        if data is None:
            return None
        try:
            found = pages.decode(data)
            if found.facts != (expected := self._facts(level, place)):
                raise StoreError(f"A page says it is {found.facts}, under the key of {expected}.")
            shape = None
            if self.sizes is not None:
                layers, heads, width = self.sizes
                shape = (layers, heads, self.store.page, width)
            keys, values = self.store.levels[level].codec.decode(found.tensors, self.dtype, shape)
            if keys.shape[2] != self.store.page:
                raise StoreError(f"A page of {self.store.page} tokens holds keys {tuple(keys.shape)}.")
        except StoreError as error:
            self.store.fault(f"{error} It and what comes after it are computed again.")
            with suppress(StoreError):  # so that what is computed now is stored again
                self.store.levels[level].tier.discard(key)
            return None
        return keys, values

    def _facts(self, level: int, place: int) -> pages.PageFacts:
        space, size = self.spaces[level], self.store.page
        return pages.PageFacts(
            model=space.model, dtype=space.dtype, codec=space.codec, start=place * size, stop=(place + 1) * size
        )

    def size(self, tokens: Sequence[int]) -> int:
        """Bytes of a prompt's pages as they are stored, all levels together; reads them."""
        held = ((level.tier, key) for n, level in enumerate(self.store.levels) for key in self.keys(n, tokens))
        return sum(len(tier.get(key) or b"") for tier, key in held)

    def missing(self, tokens: Sequence[int], level: int = 0) -> int:
        """Tokens up to the end of the last whole page that some level from ``level`` on does not hold; 0: all do."""
        last = 0
        for number in range(level, len(self.spaces)):
            tier = self.store.levels[number].tier
            absent = [place for place, key in enumerate(self.keys(number, tokens)) if not tier.contains(key)]
            last = max([last, *((place + 1) * self.store.page for place in absent)])
        return last

    def write(self, tokens: Sequence[int], stretch: Stretch) -> None:
        """Put the whole pages of a stretch into every level from its own on, the last page first: a prefix that is cut
        by a full tier loses its end. Pages that are there already stay."""
        size = self.store.page
        held = tokens[: stretch.keys.shape[2]]
        for number in range(stretch.level, len(self.spaces)):
            tier, codec = self.store.levels[number].tier, self.store.levels[number].codec
            for place, key in reversed(list(enumerate(self.keys(number, held)))):
                run = slice(place * size, (place + 1) * size)
                try:
                    if not tier.contains(key):
                        tensors = codec.encode(stretch.keys[:, :, run], stretch.values[:, :, run])
                        tier.put(key, pages.encode(tensors, self._facts(number, place)))
                except StoreError as error:
                    self.store.fault(f"A page was not stored. {error}")
                    break
