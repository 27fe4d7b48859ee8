"""The contract of a tier: a place that keeps the bytes of pages under their keys."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

__all__ = ["Tier"]


class Tier(ABC):
    """A place for pages.

    Pages are immutable and a key says what is in them (:func:`tenuto.tiers.key.page_key`), so data under a key never
    changes. A tier is a cache: it may forget any page at any time, and a page it cannot give back whole it does not
    give back at all. So ``get`` never raises over the state of the store; what it cannot read is a miss, and the tier
    warns once (``RuntimeWarning``) when the cause is a fault and not a mere absence.

    Every method may be called from several threads at once. A tier can be used as a context manager; after ``close`` it
    must not be used.
    """

    _warned = False

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Keep a page. If the key is there already, only its recency is renewed.

        A full tier first drops the pages that were least recently put or got.

        Args:
            key: 1 to 1,024 bytes of UTF-8; data: the page, any bytes.

        Raises:
            StoreError: the page was not stored. All that was there before still is, but for pages dropped for room.
        """

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """The page, exactly as it was put, or None. Renews its recency."""

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """One answer per key, in the order given, each as ``get`` would give it; in one round trip if possible."""
        return [self.get(key) for key in keys]

    @abstractmethod
    def contains(self, key: str) -> bool:
        """Whether ``get`` would find the page, without reading or checking its data. Leaves recency as it is."""

    @abstractmethod
    def discard(self, key: str) -> None:
        """Forget a page; nothing happens if there is none. Once it returns, nobody gets the page from this tier.

        Raises:
            StoreError: the page may still be there.
        """

    @abstractmethod
    def keys(self) -> list[str]:
        """The keys of all pages held now; of a large or distant tier this may take long.

        Raises:
            StoreError: they cannot be known.
        """

    @abstractmethod
    def bytes_used(self) -> int:
        """Bytes that the tier occupies now, its own records around the pages included.

        Raises:
            StoreError: it cannot be known.
        """

    def close(self) -> None:  # noqa: B027 (a tier may have nothing to let go of)
        """Let go of connections, threads and memory. What is on disk or on a server stays there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{message} Further faults of this tier are not reported.", RuntimeWarning, stacklevel=4)
