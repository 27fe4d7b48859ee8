"""A transformers cache whose entries lie on shards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from tenuto.errors import AttachError, InputError
from tenuto.kv.models import Layout
from tenuto.shards.layer import ShardedLayer
from tenuto.shards.mesh import DataParallel
from tenuto.shards.plan import Books, Plan, Step

__all__ = ["ShardedCache"]


class ShardedCache(Cache):  # type: ignore[misc]
    """Made by a sharded run. Layers that slide over a window are transformers' own, whole on every rank.

    Attributes:
        plan, layout: what it was made with; books: what decoding steps have read.
        engine: the layers that are sharded.
        broken: an error interrupted a step, so that not all layers hold the same tokens.
    """

    def __init__(self, plan: Plan, layout: Layout, route: Callable[[int], torch.Tensor | None]) -> None:
        self.plan, self.layout, self.books, self.route = plan, layout, Books(), route
        layers: list[Any] = [
            ShardedLayer(number, plan, self.books, lambda number=number: route(number))  # type: ignore[misc]
            if spec.site
            else spec.sliding_layer()
            for number, spec in enumerate(layout.layers)
        ]
        super().__init__(layers=layers)
        self.layers: list[Any] = layers
        self.engine: list[ShardedLayer] = [layer for layer in layers if isinstance(layer, ShardedLayer)]
        self.broken = False

    @torch.no_grad()
    def begin(self, batch: int, new: int, mask: torch.Tensor | None, device: torch.device) -> None:
        """A call of the model starts; ``mask [batch, tokens]`` ends with its ``new`` tokens.

        Raises:
            AttachError: another batch size than before, ranks disagree, or the cache is half-written.
            StoreError: a rank does not answer.
        """
        if self.broken:
            raise AttachError("An error interrupted the model in mid-step: this cache is incomplete. Start a new one.")
        valid = torch.ones(batch, new, dtype=torch.bool, device=device) if mask is None else mask[:, -new:].bool()
        held = len(self.engine[0].tables)
        rows = batch * (self.plan.exchange.ranks if isinstance(self.plan.exchange, DataParallel) else 1)
        if held not in (0, rows):
            raise AttachError(f"The cache holds {held} rows and the model was given {rows}.")
        self.broken = True
        step = Step(self.plan.exchange.begin(valid), self.plan.exchange.others * batch, batch)
        for layer in self.engine:
            layer.step = step

    def valid(self) -> None:
        """Which tokens so far are none of padding is not known: no mask of four dimensions is taken."""

    def finish(self) -> None:
        """The call is over."""
        for layer in self.engine:
            layer.step = None
        self.broken = False

    # Rows and rollback.

    def _rows(self, rows: Sequence[int]) -> None:
        if isinstance(self.plan.exchange, DataParallel):
            raise AttachError(
                "Rows cannot be reordered where every rank has rows of its own: use beams with layout='replicated'."
            )
        for layer in self.engine:
            layer.select_rows(rows)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only these rows, in this order."""
        if not self.engine[0].tables:
            return
        self._rows([int(row) for row in indices])
        for layer in self.layers:
            if not isinstance(layer, ShardedLayer):
                layer.batch_select_indices(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in another order, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        rows = len(self.engine[0].tables)
        self.batch_select_indices(torch.arange(rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens (a negative number), as rejected proposals of assisted decoding are.

        Raises:
            AttachError: pages have summaries for a selector.
            InputError: not a negative number, or more tokens than there are.
        """
        if not -self.engine[0].columns <= tokens_to_remove <= 0:
            raise InputError(
                f"crop({tokens_to_remove}): give minus the number of tokens to take back, at most "
                f"{self.engine[0].columns}."
            )
        for layer in self.layers:
            if isinstance(layer, ShardedLayer):
                layer.drop_last(-tokens_to_remove)
            elif layer.is_initialized:
                layer.crop(tokens_to_remove)

    def fork(self) -> ShardedCache:
        """An independent copy, with books of its own: ask several questions on one context."""
        other = ShardedCache(self.plan, self.layout, self.route)
        other.layers = [
            new.take(old) if isinstance(old, ShardedLayer) else copy.deepcopy(old)
            for new, old in zip(other.layers, self.layers, strict=True)
        ]
        other.broken = self.broken
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedCache:
        return self.fork()

    def reset(self) -> None:
        """Forget everything."""
        for layer in self.layers:
            layer.reset()
        self.broken = False

    # Books.

    @property
    def bytes_held(self) -> int:
        """Bytes of keys and values on this rank, counted from the tensors."""
        return sum(self.bytes_by_shard.values())

    @property
    def bytes_by_shard(self) -> dict[int, int]:
        """The same, per shard of this rank."""
        found = dict.fromkeys(self.plan.mine, 0)
        for layer in self.engine:
            for row in layer.shelves:
                for shard, shelf in row.items():
                    found[shard] += shelf.nbytes
        return found

    @property
    def bytes_tables(self) -> int:
        """Bytes of page tables and summaries, which every rank holds."""
        tensors = [t for layer in self.engine for table in layer.tables for t in table.tensors().values()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    @property
    def bytes_full(self) -> int:
        """Bytes of keys and values of all shards together, if no page had room left."""
        tokens = sum(sum(layer.seen) for layer in self.engine)
        return tokens * self.layout.token_bytes // max(len(self.engine), 1)

    @property
    def balance(self) -> float:
        """The largest load of a shard against the mean, worst layer; 1 is even."""
        loads = [torch.stack([t.loads for t in layer.tables]).sum(0) for layer in self.engine if layer.tables]
        return max((float(load.max() / load.float().mean()) for load in loads if int(load.sum())), default=1.0)
