"""The pages of one row that lie on one shard: their keys and values, in memory or in a lower tier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load, save

from tenuto.kv.offload.pool import Pool, PooledPage
from tenuto.tiers.codec import PageCodec

__all__ = ["ShardPages"]


class ShardPages:
    """Room for whole pages.

    Attributes:
        codec: of coded pages.
        keys, values: of the raw pages in memory ``[kv_heads, pages * page, head_dim]``; slots without a token are zero.
        at: where among them each page of the shard is, -1: it is coded, or only below ``[pages]`` int64.
        coded: tensors of the codec by page number, each page by itself; they never change.
        below: pages that were written to the tier, by number; full pages never change, so a copy there stays good.
    """

    def __init__(self, page: int, keys: torch.Tensor, values: torch.Tensor, codec: PageCodec) -> None:
        self.page, self.codec, self.keys, self.values = page, codec, keys[:, :0].clone(), values[:, :0].clone()
        self.at = torch.zeros(0, dtype=torch.int64, device=keys.device)
        self.coded: dict[int, dict[str, torch.Tensor]] = {}
        self.below: dict[int, PooledPage] = {}

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

        There is no copy where they are the first ones and none are coded.
        """
        keys, values = self._raw(wanted)
        some = wanted.any(-1).tolist() if self.coded else []
        pages = [number for number in self.coded if some[number]]
        if not pages:
            return keys, values
        inside = wanted[pages].flatten()
        both = self.codec.decode(self.codec.join([self.coded[number] for number in pages]), keys.dtype)
        more = [part.transpose(0, 1).flatten(1, 2)[:, inside] for part in both]
        return torch.cat([keys, more[0]], 1), torch.cat([values, more[1]], 1)

    def _raw(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slots = torch.zeros(self.keys.shape[1] // self.page, self.page, dtype=torch.bool, device=wanted.device)
        there = self.at >= 0
        slots[self.at[there]] = wanted[there]
        flat = slots.flatten()
        count = int(flat.sum())
        if bool(flat[:count].all()):
            return self.keys[:, :count], self.values[:, :count]
        chosen = flat.nonzero()[:, 0]
        return self.keys[:, chosen], self.values[:, chosen]

    def _slice(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        run = slice(int(self.at[number]) * self.page, (int(self.at[number]) + 1) * self.page)
        return self.keys[:, run].contiguous(), self.values[:, run].contiguous()

    def encode(self, pages: Sequence[int]) -> None:
        """Hold these full raw pages as their codec stores them, from now on."""
        for number in pages:
            keys, values = self._slice(number)
            named = self.codec.encode(keys[None], values[None])
            self.coded[number] = {  # copies: a view would keep all of what it is a part of
                name: part.clone(memory_format=torch.contiguous_format) for name, part in named.items()
            }
        self._leave(pages)

    def demote(self, pages: Sequence[int], pool: Pool) -> None:
        """Let these full pages go from memory; those that were never written to the tier are.

        Raises:
            StoreError: the tier did not take one.
        """
        for number in pages:
            coded = self.coded.pop(number, None)
            if number not in self.below:
                self.below[number] = pool.put(*(self._slice(number) if coded is None else _packed(coded)))
        self._leave(pages)

    def _leave(self, pages: Sequence[int]) -> None:
        stay = self.at >= 0
        stay[list(pages)] = False
        self._only(stay)

    def promote(self, pages: Sequence[int], pool: Pool) -> None:
        """Bring these pages back to memory.

        Raises:
            StoreError: the tier did not give one.
        """
        device = self.keys.device
        got = [fetch.result() for fetch in pool.fetch([self.below[number] for number in pages], device)]
        if self.codec.exact:
            self._append(pages, torch.cat([keys for keys, _ in got], 1), torch.cat([values for _, values in got], 1))
            return
        for number, (data, _) in zip(pages, got, strict=True):
            named = load(data.cpu().numpy().tobytes())
            self.coded[number] = {name: part.to(device) for name, part in named.items()}

    def _only(self, stay: torch.Tensor) -> None:
        """In memory, only these pages ``[pages]`` bool, in the order of their numbers."""
        slots = self.at[stay].repeat_interleave(self.page) * self.page
        slots = slots + torch.arange(self.page, device=slots.device).repeat(int(stay.sum()))
        if len(slots) < self.keys.shape[1] or not bool((slots.diff() == 1).all()):
            self.keys, self.values = self.keys[:, slots], self.values[:, slots]
        self.at = torch.where(stay, stay.cumsum(0) - 1, -1)

    def keep(self, pages: torch.Tensor) -> None:
        """Forget all other pages, ``[pages]`` bool; none is below."""
        self._only(pages & (self.at >= 0))
        self.at = self.at[pages]
        number = (pages.cumsum(0) - 1).tolist()
        stay = pages.tolist()
        self.coded = {number[old]: named for old, named in self.coded.items() if stay[old]}

    def copied(self) -> ShardPages:
        """A copy of its own; pages below are shared."""
        other = ShardPages(self.page, self.keys, self.values, self.codec)
        other.keys, other.values, other.at = self.keys.clone(), self.values.clone(), self.at.clone()
        other.coded, other.below = dict(self.coded), dict(self.below)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in memory, room for tokens to come and the scales of codes included."""
        coded = (part for named in self.coded.values() for part in named.values())
        return sum(part.untyped_storage().nbytes() for part in (self.keys, self.values, *coded))


def _packed(coded: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A coded page as the pair that a pool takes: all bytes, and nothing."""
    data = torch.frombuffer(bytearray(save(coded)), dtype=torch.uint8)[None, :, None]
    return data, data[..., :0]
