"""Page tables: what every rank knows of one row in one layer, also of the tokens that it does not hold.

A page holds tokens of one shard and one kind in the order they came, and never changes once it is full. The table is
built from the same numbers by the same rules on every rank, so ranks agree without a message. Summaries of keys are
kept here too, if a selector needs them: choosing pages then needs no message either.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from tenuto.errors import AttachError
from tenuto.shards.policy import Places
from tenuto.shards.schedule import DECAY, PageUse

__all__ = ["Table"]


class Table:
    """The pages of one row in one layer.

    Attributes:
        page: tokens per page; shards: how many there are; needs: names of summaries that are kept.
        index: numbers of the tokens in each page, -1 where it is not full ``[pages, page]`` int32.
        shard: that holds each page; kind: of its tokens ``[pages]`` int64.
        summaries: by name: ``total`` (sum of keys), ``least``, ``most`` (per channel) ``[pages, kv_heads, head_dim]``
            float32; ``experts``: tokens of each expert ``[pages, experts]`` float32.
        memory: what the placement remembers.
        below: pages that are in a lower tier only ``[pages]`` bool; coded: that are held through a codec.
        gone: full pages of each shard that were deleted ``[shards]`` int64.
        usage: how pages were used, by the names of :class:`PageUse` ``[pages]`` float32; step: decoding steps so far.
    """

    def __init__(self, page: int, shards: int, device: torch.device, needs: Collection[str] = ()) -> None:
        self.page, self.shards, self.needs = page, shards, frozenset(needs)
        self.index = torch.zeros(0, page, dtype=torch.int32, device=device)
        self.shard = self.kind = torch.zeros(0, dtype=torch.int64, device=device)
        self.summaries: dict[str, torch.Tensor] = {}
        self.memory: torch.Tensor | None = None
        self.below = self.coded = torch.zeros(0, dtype=torch.bool, device=device)
        self.gone = torch.zeros(shards, dtype=torch.int64, device=device)
        self.usage = {name: torch.zeros(0, device=device) for name in ("last", "count", "mass", "share")}
        self.step = 0
        self.open: dict[tuple[int, int], int] = {}

    @property
    def counts(self) -> torch.Tensor:
        """Tokens per page ``[pages]`` int64."""
        return (self.index >= 0).sum(-1)

    @property
    def loads(self) -> torch.Tensor:
        """Tokens per shard ``[shards]`` int64."""
        zeros = torch.zeros(self.shards, dtype=torch.int64, device=self.index.device)
        return zeros.index_add_(0, self.shard, self.counts)

    def of(self, shard: int) -> torch.Tensor:
        """Numbers of a shard's pages, in the order of its store."""
        return (self.shard == shard).nonzero()[:, 0]

    def add(
        self, numbers: torch.Tensor, places: Places, keys: torch.Tensor, experts: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in tokens, oldest first; gives each one's page and its slot there, ``[new]`` int64 both.

        Args:
            numbers: ``[new]``; keys: ``[kv_heads, new, head_dim]``.
            experts: how often each expert was chosen, one-hot or a share ``[new, experts]``; None: not known.
        """
        page, slot = torch.empty_like(numbers), torch.empty_like(numbers)
        for shard, kind in torch.stack([places.shard, places.kind]).unique(dim=1).T.tolist():
            mine = ((places.shard == shard) & (places.kind == kind)).nonzero()[:, 0]
            before = self.open.get((shard, kind))
            used = 0 if before is None else int((self.index[before] >= 0).sum())
            started = [] if before is None or used == self.page else [before]
            at = torch.arange(len(mine), device=numbers.device) + (used if started else 0)
            fresh = int(at[-1]) // self.page + 1 - len(started)
            pages = [*started, *range(len(self.shard), len(self.shard) + fresh)]
            self._grow(shard, kind, fresh)
            self.open[shard, kind] = pages[-1]
            page[mine] = torch.tensor(pages, device=numbers.device)[at // self.page]
            slot[mine] = at % self.page
        self.index[page, slot] = numbers.to(torch.int32)
        self._summarise(page, keys.float().transpose(0, 1), experts)
        return page, slot

    def _grow(self, shard: int, kind: int, count: int) -> None:
        if count:
            self.index = torch.cat([self.index, self.index.new_full((count, self.page), -1)])
            self.shard = torch.cat([self.shard, self.shard.new_full((count,), shard)])
            self.kind = torch.cat([self.kind, self.kind.new_full((count,), kind)])
            self.below = torch.cat([self.below, self.below.new_zeros(count)])
            self.coded = torch.cat([self.coded, self.coded.new_zeros(count)])
            mean = float(self.usage["mass"].mean()) if len(self.usage["mass"]) else 0.0
            first = {"last": float(self.step), "mass": mean}  # nothing is known of a new page: it is an ordinary one
            for name, column in self.usage.items():
                self.usage[name] = torch.cat([column, column.new_full((count,), first.get(name, 0.0))])

    def _summarise(self, page: torch.Tensor, keys: torch.Tensor, experts: torch.Tensor | None) -> None:
        at = page[:, None, None].expand_as(keys)
        for name in sorted(self.needs):
            if name == "experts":
                if experts is not None:
                    self._room(name, experts, 0.0).index_add_(0, page, experts.float())
            elif name == "total":
                self._room(name, keys, 0.0).index_add_(0, page, keys)
            else:
                end, how = (float("inf"), "amin") if name == "least" else (float("-inf"), "amax")
                self._room(name, keys, end).scatter_reduce_(0, at, keys, how)

    def _room(self, name: str, like: torch.Tensor, fill: float) -> torch.Tensor:
        """A summary with room for all pages."""
        old = self.summaries.get(name, like.new_zeros(0, *like.shape[1:], dtype=torch.float32))
        missing = len(self.shard) - len(old)
        if missing:
            old = torch.cat([old, old.new_full((missing, *old.shape[1:]), fill)])
        self.summaries[name] = old
        return old

    def used(self, read: torch.Tensor, share: torch.Tensor) -> None:
        """A decoding step: which pages it read ``[pages]`` bool, and the share of attention each should get."""
        self.step += 1
        self.usage["last"] = self.usage["last"].masked_fill(read, self.step)
        self.usage["count"] = self.usage["count"] + read
        self.usage["mass"], self.usage["share"] = DECAY * self.usage["mass"] + share, share

    def use(self) -> PageUse:
        """How pages were used so far."""
        filled = self.index.masked_fill(self.index < 0, 2**30)
        return PageUse(self.step, **self.usage, newest=self.index.amax(-1).float(), oldest=filled.amin(-1).float())

    def check_crop(self, length: int) -> None:
        """Whether tokens from number ``length`` on can be forgotten.

        Raises:
            AttachError: pages have summaries, which cannot forget, or the tokens are in coded pages.
        """
        if self.needs:
            raise AttachError(
                "Tokens cannot be taken back from pages with summaries: assisted decoding needs selector=None."
            )
        if bool((self.coded & (self.index.amax(-1) >= length)).any()):
            raise AttachError("Tokens cannot be taken back from coded pages: give a larger recent=, or codec='raw'.")

    def crop(self, length: int) -> torch.Tensor:
        """Forget tokens from number ``length`` on; gives which pages stay ``[pages]`` bool.

        Raises:
            AttachError: as :meth:`check_crop`.
        """
        if bool((self.index >= length).any()):
            self.check_crop(length)
        self.index = self.index.masked_fill(self.index >= length, -1)
        stay = self.counts > 0
        self.keep(stay)
        return stay

    def keep(self, stay: torch.Tensor) -> None:
        """Only these pages, ``[pages]`` bool."""
        self.index, self.shard, self.kind = self.index[stay], self.shard[stay], self.kind[stay]
        self.below, self.coded = self.below[stay], self.coded[stay]
        self.usage = {name: column[stay] for name, column in self.usage.items()}
        self.summaries = {name: tensor[stay] for name, tensor in self.summaries.items()}
        self.open = {}
        for number, group in enumerate(zip(self.shard.tolist(), self.kind.tolist(), strict=True)):
            self.open[group] = max(self.open.get(group, 0), number)

    def delete(self, going: torch.Tensor) -> torch.Tensor:
        """Forget full pages for good, by their numbers; gives which stay ``[pages]`` bool."""
        self.gone = self.gone.index_add(0, self.shard[going], torch.ones_like(going))
        stay = torch.ones_like(self.below)
        stay[going] = False
        self.keep(stay)
        return stay

    def copied(self) -> Table:
        """A copy that shares nothing that changes."""
        other = Table(self.page, self.shards, self.index.device, self.needs)
        other.index, other.shard, other.kind = self.index.clone(), self.shard, self.kind
        other.summaries = {name: tensor.clone() for name, tensor in self.summaries.items()}
        other.memory, other.open = self.memory, dict(self.open)
        other.below, other.usage, other.step = self.below.clone(), dict(self.usage), self.step
        other.coded, other.gone = self.coded, self.gone
        return other

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name."""
        named = {"index": self.index, "shard": self.shard, "kind": self.kind, "below": self.below, "coded": self.coded}
        named |= {**self.summaries, **self.usage}
        return named if self.memory is None else {**named, "memory": self.memory}
