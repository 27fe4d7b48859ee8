"""Pages in the memory of this process, or of an accelerator."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

from tenuto.errors import InputError, StoreError
from tenuto.tiers.forked import renewed_in_child
from tenuto.tiers.tier import Tier

__all__ = ["HostTier"]


class HostTier(Tier):
    """At most ``capacity`` bytes of pages, least recently used out first.

    Args:
        device: None keeps bytes, and ``get`` copies nothing; ``pinned`` keeps them where an accelerator fetches them
            fastest, a name such as ``cuda`` in its own memory: spare memory there is nearer than the host's.

    Raises:
        InputError: the capacity is negative, or there is no such device.
    """

    def __init__(self, capacity: int, *, device: str | None = None) -> None:
        if capacity < 0:
            raise InputError(f"A host tier of {capacity} bytes was asked for. Give zero or more.")
        self.capacity, self.device = capacity, device
        try:
            self._packed(b"one")
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"A tier in {device!r} was asked for, which is not here. Use host: instead.") from error
        self._pages: OrderedDict[str, bytes | torch.Tensor] = OrderedDict()
        self._used = 0
        self.after_fork()
        renewed_in_child(self)

    def after_fork(self) -> None:
        """A new lock, which no thread of the parent holds."""
        self._mutex = threading.Lock()

    def put(self, key: str, data: bytes) -> None:
        if len(data) > self.capacity:
            raise StoreError(f"A page of {len(data)} bytes does not fit into {self.capacity}. Give the tier more.")
        with self._mutex:
            if key not in self._pages:
                while self._used + len(data) > self.capacity:
                    self._used -= len(self._pages.popitem(last=False)[1])
                self._pages[key] = self._packed(data)
                self._used += len(data)
            self._pages.move_to_end(key)

    def get(self, key: str) -> bytes | None:
        with self._mutex:
            if key in self._pages:
                self._pages.move_to_end(key)
            held = self._pages.get(key)
        return held.cpu().numpy().tobytes() if isinstance(held, torch.Tensor) else held

    def _packed(self, data: bytes) -> bytes | torch.Tensor:
        if self.device is None:
            return data
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
        return tensor.pin_memory() if self.device == "pinned" else tensor.to(self.device)

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
