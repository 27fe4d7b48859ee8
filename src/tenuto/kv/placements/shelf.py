"""The pages of one row that lie on one shard: their keys and values."""

from __future__ import annotations

import torch

__all__ = ["Shelf"]


class Shelf:
    """Room for whole pages, as many as there are.

    Attributes:
        keys, values: ``[kv_heads, pages * page, head_dim]``, page after page; slots without a token are zero.
    """

    def __init__(self, page: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.page, self.keys, self.values = page, keys, values

    @classmethod
    def empty(cls, page: int, keys: torch.Tensor, values: torch.Tensor) -> Shelf:
        """One without pages, for ``keys`` and ``values`` of these shapes but for the tokens."""
        return cls(page, keys[:, :0].clone(), values[:, :0].clone())

    def put(self, pages: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold ``keys``, ``values [kv_heads, new, head_dim]`` at ``slots [new]``; there are ``pages`` pages then."""
        missing = pages * self.page - self.keys.shape[1]
        if missing:
            self.keys, self.values = (
                torch.cat([old, old.new_zeros(old.shape[0], missing, old.shape[2])], 1)
                for old in (self.keys, self.values)
            )
        self.keys[:, slots], self.values[:, slots] = keys, values

    def read(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at the slots that are ``wanted [slots]`` bool; no copy where these are the first ones."""
        count = int(wanted.sum())
        if count == len(wanted) or bool(wanted[:count].all()):
            return self.keys[:, :count], self.values[:, :count]
        at = wanted.nonzero()[:, 0]
        return self.keys[:, at], self.values[:, at]

    def keep(self, pages: torch.Tensor) -> None:
        """Only these pages, ``[pages]`` bool."""
        slots = pages.repeat_interleave(self.page)
        if not bool(slots.all()):
            self.keys, self.values = self.keys[:, slots], self.values[:, slots]

    def copied(self) -> Shelf:
        """A copy of its own."""
        return Shelf(self.page, self.keys.clone(), self.values.clone())

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, room for tokens to come included."""
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes()
