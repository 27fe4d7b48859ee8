"""A transformers cache whose entries lie on shards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from tenuto.errors import AttachError, InputError, StoreError
from tenuto.kv.models import Layout
from tenuto.shards.agreement import mark
from tenuto.shards.layer import ShardedLayer
from tenuto.shards.plan import Plan, ReadTotals, Step

__all__ = ["ShardedCache"]


class ShardedCache(Cache):  # type: ignore[misc]
    """Made by a sharded run. Layers that slide over a window are transformers' own, whole on every rank.

    Attributes:
        plan, layout: what it was made with; books: what decoding steps have read.
        engine: the layers that are sharded.
        real: which of the tokens so far are no padding, of all rows ``[rows, columns]`` bool; None at first.
        history: 64 bits over all calls and what was done to the rows since; the same on all ranks.
        broken: an error interrupted a step, so that not all layers hold the same tokens.
    """

    def __init__(self, plan: Plan, layout: Layout, route: Callable[[int], torch.Tensor | None]) -> None:
        self.plan, self.layout, self.books, self.route = plan, layout, ReadTotals(), route
        layers: list[Any] = [
            ShardedLayer(number, plan, self.books, lambda number=number: route(number))  # type: ignore[misc]
            if spec.site
            else spec.sliding_layer()
            for number, spec in enumerate(layout.layers)
        ]
        super().__init__(layers=layers)
        self.layers: list[Any] = layers
        self.engine: list[ShardedLayer] = [layer for layer in layers if isinstance(layer, ShardedLayer)]
        self.real: torch.Tensor | None = None
        self._after: tuple[torch.Tensor, int] = torch.empty(0), 0
        self.history = 0
        self.broken = False

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin(
        self, batch: int, new: int, mask: torch.Tensor | None, device: torch.device, facts: Mapping[str, int]
    ) -> None:
        """A call of the model starts.

        Args:
            batch: rows of this rank; new: tokens of each in this call; mask: ``[batch, tokens so far + new]``, None:
                all are real; facts: in which ranks must be the same.

        Raises:
            AttachError: another batch size than before, a mask that does not go with what is held, ranks disagree, or
                the cache is half-written. What it holds stays as it was.
            StoreError: a rank does not answer.
        """
        if self.broken:
            raise AttachError(
                "This cache is incomplete: an error interrupted the model in mid-step, or another thread is in one. "
                "Start a new one, and give every thread its own."
            )
        held = len(self.engine[0].tables)
        rows = batch * (1 if self.plan.exchange.alike else self.plan.exchange.ranks)
        if held not in (0, rows):
            raise AttachError(f"The cache holds {held} rows and the model was given {rows}.")
        valid = self._valid(batch, new, mask, device)
        try:
            everywhere = self.plan.exchange.begin(valid, facts)
        except StoreError:
            self.broken = True
            raise
        self.broken = True
        self._after = self._real_then(everywhere), mark(self.history, *facts.values(), batch, new)
        step = Step(everywhere, self.plan.exchange.others * batch, batch)
        for layer in self.engine:
            layer.step = step

    def valid(self) -> None:
        """Which tokens so far are none of padding is not known: no mask of four dimensions is taken."""

    def _valid(self, batch: int, new: int, mask: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """Which of the new tokens are real."""
        columns, first = self.engine[0].columns, self.plan.exchange.others * batch
        known = None if self.real is None else self.real[first : first + batch]
        if mask is None:
            if known is not None and not bool(known.all()):
                raise AttachError(
                    f"The cache holds padding and no mask was given. Give the mask [{batch}, {columns + new}] of all "
                    "tokens, as before."
                )
            return torch.ones(batch, new, dtype=torch.bool, device=device)
        if mask.shape != (batch, columns + new):
            raise AttachError(
                f"A mask of shape {list(mask.shape)} was given for {columns} tokens held and {new} new ones. "
                f"Give one of [{batch}, {columns + new}], or none."
            )
        real = mask.bool()
        if known is not None and not torch.equal(real[:, :columns], known.to(real.device)):
            raise AttachError(
                "The mask hides or shows other tokens than it did when they were read: what a cache holds is seen by "
                "all that follows. Give the same mask for them, or read the text again with the new one."
            )
        return real[:, columns:]

    def _real_then(self, valid: torch.Tensor) -> torch.Tensor:
        return valid.clone() if self.real is None else torch.cat([self.real.to(valid.device), valid], 1)

    def finish(self) -> None:
        """The call is over.

        Raises:
            AttachError: a layer did not attend through the cache.
        """
        real, history = self._after
        for layer in self.engine:
            layer.step = None
            if layer.columns != real.shape[1]:
                raise AttachError(
                    f"Layer {layer.number} did not attend through the cache in this call: it was left out, or the "
                    "model's attention was changed while it is sharded. Start a new cache, and leave both as they are."
                )
        self.real, self.history, self.broken = real, history, False

    # Rows and rollback.

    def _rows(self, rows: Sequence[int]) -> None:
        if not self.plan.exchange.alike:
            raise AttachError(
                "Rows cannot be reordered where every rank has rows of its own: use beams with layout='replicated'."
            )
        for layer in self.engine:
            layer.select_rows(rows)
        if self.real is not None:
            self.real = self.real[list(rows)]
        self.history = mark(self.history, list(rows))

    @torch.inference_mode(False)
    @torch.no_grad()
    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only these rows, in this order."""
        if not self.engine[0].tables:
            return
        self._rows([int(row) for row in indices])
        for number, layer in enumerate(self.layers):
            if not isinstance(layer, ShardedLayer):
                if layer.get_seq_length():
                    layer.batch_select_indices(indices)
                else:  # transformers' own would keep the rows of a layer that is empty again
                    self.layers[number] = self.layout.layers[number].sliding_layer()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in another order, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        rows = len(self.engine[0].tables)
        self.batch_select_indices(torch.arange(rows).repeat_interleave(repeats))

    @torch.inference_mode(False)
    @torch.no_grad()
    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens (a negative number), as rejected proposals of assisted decoding are.

        Raises:
            AttachError: pages have summaries for a selector or are coded or demoted, or layers that slide have gone on;
                nothing is taken back then.
            InputError: not a negative number, or more tokens than there are.
        """
        if not -self.engine[0].columns <= tokens_to_remove <= 0:
            raise InputError(
                f"crop({tokens_to_remove}): give minus the number of tokens to take back, at most "
                f"{self.engine[0].columns}."
            )
        columns = self.engine[0].columns + tokens_to_remove
        kept = [0] * len(self.engine[0].tables) if self.real is None else self.real[:, :columns].sum(-1).tolist()
        self._check_crop(-tokens_to_remove, kept)
        for layer in self.layers:
            if not isinstance(layer, ShardedLayer):
                layer.crop(tokens_to_remove)  # also of none: what was recorded for this is forgotten
            elif tokens_to_remove:
                layer.crop_to(columns, kept)
        self.real = None if self.real is None else self.real[:, :columns]
        self.history = mark(self.history, tokens_to_remove)

    def _check_crop(self, count: int, kept: Sequence[int]) -> None:
        """Raise before anything is changed: all layers forget, or none."""
        for layer in self.layers:
            if isinstance(layer, ShardedLayer):
                layer.check_crop(count, kept)
            elif count and layer.get_seq_length() >= layer.sliding_window and not layer.record_past:
                raise AttachError(
                    f"{count} tokens cannot be taken back: layers that slide have let go of what came before. Call "
                    "cache.activate_past_recording() before they are read, as assisted decoding does."
                )

    @torch.inference_mode(False)
    @torch.no_grad()
    def fork(self) -> ShardedCache:
        """An independent copy, with books of its own: ask several questions on one context."""
        other = ShardedCache(self.plan, self.layout, self.route)
        other.layers = [
            new.take(old) if isinstance(old, ShardedLayer) else _copied(old)
            for new, old in zip(other.layers, self.layers, strict=True)
        ]
        other.real, other.history, other.broken = self.real, self.history, self.broken
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedCache:
        return self.fork()

    def reset(self) -> None:
        """Forget everything."""
        for number, layer in enumerate(self.layers):
            if isinstance(layer, ShardedLayer):
                layer.reset()
            else:  # a reset of transformers' own leaves its rows and length
                self.layers[number] = self.layout.layers[number].sliding_layer()
        self.real, self.history, self.broken = None, 0, False

    # Counts of what was read.

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


def _copied(layer: Any) -> Any:
    """A layer of transformers' own; also of tensors that gradients flow through, which deepcopy refuses."""
    other = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, torch.Tensor):
            setattr(other, name, value.clone())
    return other
