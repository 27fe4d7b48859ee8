"""The pages of one row that lie on one shard: their keys and values, in memory or in a lower tier."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenuto.kv.offload.pool import Page, Pool

__all__ = ["Shelf"]


class Shelf:
    """Room for whole pages.

    Attributes:
        keys, values: of the pages in memory ``[kv_heads, pages * page, head_dim]``; slots without a token are zero.
        at: where in memory each page of the shard is, -1: only below ``[pages]`` int64.
        below: pages that were written to the tier, by number; full pages never change, so a copy there stays good.
    """

    def __init__(self, page: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.page, self.keys, self.values = page, keys[:, :0].clone(), values[:, :0].clone()
        self.at = torch.zeros(0, dtype=torch.int64, device=keys.device)
        self.below: dict[int, Page] = {}

    def put(self, pages: int, page: torch.Tensor, slot: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold ``keys``, ``values [kv_heads, new, head_dim]`` at pages and slots ``[new]``; of ``pages`` pages then."""
        missing = pages - len(self.at)
        if missing:
            empty = keys.new_zeros(keys.shape[0], missing * self.page, keys.shape[2])
            self._append(range(len(self.at), pages), empty, empty)
        where = self.at[page] * self.page + slot
        self.keys[:, where], self.values[:, where] = keys, values

    def _append(self, pages: Sequence[int], keys: torch.Tensor, values: torch.Tensor) -> None:
        first = self.keys.shape[1] // self.page
        grown = max(max(pages) + 1 - len(self.at), 0)
        self.at = torch.cat([self.at, self.at.new_full((grown,), -1)])
        self.at[list(pages)] = torch.arange(first, first + len(pages), device=self.at.device)
        self.keys, self.values = torch.cat([self.keys, keys], 1), torch.cat([self.values, values], 1)

    def read(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the tokens that are ``wanted [pages, page]`` bool, all in memory, in any order.

        There is no copy where they are the first ones.
        """
        slots = torch.zeros(self.keys.shape[1] // self.page, self.page, dtype=torch.bool, device=wanted.device)
        there = self.at >= 0
        slots[self.at[there]] = wanted[there]
        flat = slots.flatten()
        count = int(flat.sum())
        if bool(flat[:count].all()):
            return self.keys[:, :count], self.values[:, :count]
        chosen = flat.nonzero()[:, 0]
        return self.keys[:, chosen], self.values[:, chosen]

    def demote(self, pages: Sequence[int], pool: Pool) -> None:
        """Let these full pages go from memory; those that were never written to the tier are.

        Raises:
            StoreError: the tier did not take one.
        """
        for number in pages:
            if number not in self.below:
                run = slice(int(self.at[number]) * self.page, (int(self.at[number]) + 1) * self.page)
                self.below[number] = pool.put(self.keys[:, run].contiguous(), self.values[:, run].contiguous())
        stay = self.at >= 0
        stay[list(pages)] = False
        self._only(stay)

    def promote(self, pages: Sequence[int], pool: Pool) -> None:
        """Bring these pages back to memory.

        Raises:
            StoreError: the tier did not give one.
        """
        got = [fetch.result() for fetch in pool.fetch([self.below[number] for number in pages], self.keys.device)]
        self._append(pages, torch.cat([keys for keys, _ in got], 1), torch.cat([values for _, values in got], 1))

    def _only(self, stay: torch.Tensor) -> None:
        """In memory, only these pages ``[pages]`` bool, in the order of their numbers."""
        slots = self.at[stay].repeat_interleave(self.page) * self.page
        slots = slots + torch.arange(self.page, device=slots.device).repeat(int(stay.sum()))
        if len(slots) < self.keys.shape[1] or not bool((slots.diff() == 1).all()):
            self.keys, self.values = self.keys[:, slots], self.values[:, slots]
        self.at = torch.where(stay, stay.cumsum(0) - 1, -1)

    def keep(self, pages: torch.Tensor) -> None:
        """Forget all other pages, ``[pages]`` bool; all are in memory."""
        self._only(pages)
        self.at = self.at[pages]

    def copied(self) -> Shelf:
        """A copy of its own; pages below are shared."""
        other = Shelf(self.page, self.keys, self.values)
        other.keys, other.values, other.at = self.keys.clone(), self.values.clone(), self.at.clone()
        other.below = dict(self.below)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in memory, room for tokens to come included."""
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes()
