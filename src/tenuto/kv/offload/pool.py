"""The way from a cache to its tier and back: pages are put down once, and fetched once however many ask."""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import torch

from tenuto.errors import StoreError
from tenuto.kv.offload import janitor
from tenuto.kv.offload.books import ReadCounts
from tenuto.kv.offload.settings import Prefetch
from tenuto.kv.offload.skips import Skips
from tenuto.tiers.page import PageFacts, decode, encode
from tenuto.tiers.tier import Tier

__all__ = ["Pair", "Pool", "PooledPage", "ready"]

Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a page, ``[kv_heads, entries, head_dim]`` each."""
SMOOTHING = 0.2
"""Weight of the newest of all times that are measured."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class PooledPage:
    """An immutable page in the tier; it is discarded there when no row of any cache holds this object any more.

    Attributes:
        name: its key in the tier; size: entries per KV head; nbytes: bytes of its keys and values.
    """

    name: str
    size: int
    nbytes: int


def ready(pair: Pair) -> Future[Pair]:
    """A fetch that is done."""
    done: Future[Pair] = Future()
    done.set_result(pair)
    return done


class Pool:
    """What a cache and its forks share: the tier, the fetches under way, the books.

    Attributes:
        tier: where pages go; prefetch: whether and how pages are fetched early, None: a page is fetched when it is
            asked for, and attention waits.
        latency: seconds of a round trip, a running mean; 0 before the first.
    """

    def __init__(self, tier: Tier, prefetch: Prefetch | None) -> None:
        self.tier, self.prefetch, self.books, self.latency = tier, prefetch, ReadCounts(), 0.0
        self.skips = Skips()
        self._space, self._numbers = secrets.token_hex(16), count()
        self._flying: dict[str, Future[Pair]] = {}
        self._mutex = threading.Lock()
        threads = prefetch.threads if prefetch else 0
        self._early = ThreadPoolExecutor(threads, "tenuto-prefetch") if threads else None
        self._urgent = ThreadPoolExecutor(threads, "tenuto-fetch") if threads else None
        janitor.start()

    def put(self, keys: torch.Tensor, values: torch.Tensor) -> PooledPage:
        """Write a page, ``[kv_heads, entries, head_dim]`` each.

        Raises:
            StoreError: the tier did not take it.
        """
        size, name = keys.shape[1], f"{self._space}.{next(self._numbers)}"
        facts = PageFacts(model=self._space, dtype=str(keys.dtype), codec="none", start=0, stop=size)
        self.tier.put(name, encode({"keys": keys, "values": values}, facts))
        page = PooledPage(name, size, keys.nbytes + values.nbytes)
        weakref.finalize(page, janitor.discard_later, self.tier, name)
        return page

    def fetch(self, pages: Sequence[PooledPage], device: torch.device, *, early: bool = False) -> list[Future[Pair]]:
        """One fetch per page, in one round trip for those that are not under way already.

        Without prefetching it happens here, and all are done on return. Demanded pages never queue behind early ones.
        A page that the tier does not give ends in a StoreError.
        """
        fresh: dict[str, Future[Pair]] = {}
        with self._mutex:
            for page in pages:
                if page.name not in self._flying:
                    fresh[page.name] = self._flying[page.name] = Future()
            found = [self._flying[page.name] for page in pages]
        threads = self._early if early else self._urgent
        if fresh and threads is None:
            self._bring(fresh, device)
        elif fresh and threads is not None:
            threads.submit(self._bring, fresh, device)
        return found

    def _bring(self, wanted: dict[str, Future[Pair]], device: torch.device) -> None:
        """One round trip. Whatever goes wrong, every future ends."""
        start, names = time.perf_counter(), list(wanted)
        got: list[Pair | BaseException] = []
        try:
            got += [self._read(name, data, device) for name, data in zip(names, self.tier.get_many(names), strict=True)]
        except BaseException as error:  # noqa: BLE001 (a thread's error belongs to those who wait)
            got = [StoreError(f"{type(self.tier).__name__} failed over a page: {error!r}. Start a new cache.")] * len(
                names
            )
        took = time.perf_counter() - start
        failed = sum(isinstance(each, BaseException) for each in got)
        with self._mutex:
            self.latency += (took - self.latency) * (SMOOTHING if self.latency else 1.0)
            self.books.fetches += 1
            self.books.fetches_failed += failed
            self.books.pages_fetched += len(names) - failed
            for name in names:
                del self._flying[name]
        for name, each in zip(names, got, strict=True):
            if isinstance(each, BaseException):
                wanted[name].set_exception(each)
            else:
                wanted[name].set_result(each)

    def _read(self, name: str, data: bytes | None, device: torch.device) -> Pair | StoreError:
        if data is None:
            return StoreError(
                f"{type(self.tier).__name__} gave no page {name} of old keys and values: it forgot it or cannot be "
                "reached. Give a larger tier, or start a new cache."
            )
        try:
            tensors = decode(data).tensors
        except StoreError as error:
            return error
        return tensors["keys"].to(device), tensors["values"].to(device)
