"""Several tiers as one, the fastest first."""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.errors import InputError, StoreError
from tenuto.tiers.tier import Tier

__all__ = ["Chain"]


class Chain(Tier):
    """Writes through: ``put`` stores in every tier, so what a fast tier drops for room is still in the slower ones.

    ``get`` asks the tiers in order and copies what it finds into those above. A chain is as durable as its last tier,
    and puts as fast as its slowest. It closes its tiers.

    Raises:
        InputError: no tier was given.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        if not tiers:
            raise InputError("A chain of no tiers was asked for. Give at least one.")
        self.tiers = tuple(tiers)

    def put(self, key: str, data: bytes) -> None:
        """As :meth:`Tier.put`; a tier that refuses is warned of once, and it is an error only if all of them do."""
        refusals = self._store(self.tiers, key, data)
        if len(refusals) == len(self.tiers):
            raise StoreError(f"No tier took the page. {refusals[0]}") from refusals[0]

    def get(self, key: str) -> bytes | None:
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found: dict[str, bytes] = {}
        for depth, tier in enumerate(self.tiers):
            missing = [key for key in dict.fromkeys(keys) if key not in found]
            for key, data in zip(missing, tier.get_many(missing) if missing else [], strict=True):
                if data is not None:
                    found[key] = data
                    self._store(self.tiers[:depth], key, data)
        return [found.get(key) for key in keys]

    def contains(self, key: str) -> bool:
        return any(tier.contains(key) for tier in self.tiers)

    def discard(self, key: str) -> None:
        refusals = []
        for tier in self.tiers:
            try:
                tier.discard(key)
            except StoreError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for tier in self.tiers for key in tier.keys()))  # noqa: SIM118 (a tier is no mapping)

    def bytes_used(self) -> int:
        return sum(tier.bytes_used() for tier in self.tiers)

    def close(self) -> None:
        for tier in self.tiers:
            tier.close()

    def _store(self, tiers: Sequence[Tier], key: str, data: bytes) -> list[StoreError]:
        refusals = []
        for tier in tiers:
            try:
                tier.put(key, data)
            except StoreError as error:
                refusals.append(error)
                self._warn_once(f"A tier of the chain did not take a page. {error}")
        return refusals
