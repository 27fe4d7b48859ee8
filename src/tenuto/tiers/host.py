"""Pages in the memory of this process."""

from __future__ import annotations

import threading
from collections import OrderedDict

from tenuto.errors import InputError, StoreError
from tenuto.tiers.tier import Tier

__all__ = ["HostTier"]


class HostTier(Tier):
    """At most ``capacity`` bytes of pages, least recently used out first. ``get`` copies nothing.

    Raises:
        InputError: the capacity is negative.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise InputError(f"A host tier of {capacity} bytes was asked for. Give zero or more.")
        self.capacity = capacity
        self._pages: OrderedDict[str, bytes] = OrderedDict()
        self._used = 0
        self._mutex = threading.Lock()

    def put(self, key: str, data: bytes) -> None:
        if len(data) > self.capacity:
            raise StoreError(f"A page of {len(data)} bytes does not fit into {self.capacity}. Give the tier more.")
        with self._mutex:
            if key not in self._pages:
                while self._used + len(data) > self.capacity:
                    self._used -= len(self._pages.popitem(last=False)[1])
                self._pages[key] = data
                self._used += len(data)
            self._pages.move_to_end(key)

    def get(self, key: str) -> bytes | None:
        with self._mutex:
            if key in self._pages:
                self._pages.move_to_end(key)
            return self._pages.get(key)

    def contains(self, key: str) -> bool:
        with self._mutex:
            return key in self._pages

    def discard(self, key: str) -> None:
        with self._mutex:
            self._used -= len(self._pages.pop(key, b""))

    def keys(self) -> list[str]:
        with self._mutex:
            return list(self._pages)

    def bytes_used(self) -> int:
        return self._used

    def close(self) -> None:
        with self._mutex:
            self._pages.clear()
            self._used = 0
