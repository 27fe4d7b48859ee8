"""Where the entries of one layer are held: each row and KV head has its own length, and only that much memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from tenuto.kv.parts import Codec
from tenuto.kv.slots import SLACK, BlockTable, places, sizes_for
from tenuto.kv.view import Code, Entries

__all__ = ["ROOM", "Encoded", "Held", "Store"]

ROOM = 16
"""Entries per head a full layer grows by while decoding, at most where a budget in bytes is to be met."""


class Store:
    """Entries in full precision, one flat tensor per kind; *segment* ``row * heads + head`` is a run of it.

    Segments of close lengths have as many slots each, so that the store is one dense tensor; others have whole blocks.

    Attributes:
        rows, heads: batch rows and KV heads.
        keys, values: ``[slots, head_dim]``; index: ``[slots]`` int32; weights: ``[slots]`` float32, None while every
            entry is one token; state: ``[slots, features]`` float32, None if the policy keeps none. Slots that hold
            nothing are finite.
        starts, lengths, sizes: first slot, entries held and slots reserved per segment; block: slots of a block, 0
            where each segment is one.
        spare: slots a segment gets beyond what it needs, when it must grow; grows: or one in :data:`SLACK` of what
            segments hold, if that is more.
    """

    def __init__(self, rows: int, heads: int, features: int, entries: Sequence[Entries]) -> None:
        self.rows, self.heads, self.features = rows, heads, features
        self.spare, self.grows = 0, False
        self.lengths = [len(part) for part in entries]
        self._reserve(self.lengths)
        ones = entries[0].index.new_ones
        weights = [ones(len(p), dtype=torch.float32) if p.weights is None else p.weights for p in entries]
        self.keys = self._laid(torch.cat([part.keys for part in entries]))
        self.values = self._laid(torch.cat([part.values for part in entries]))
        self.index = self._laid(torch.cat([part.index for part in entries]))
        weighted = any(part.weights is not None for part in entries)
        self.weights = self._laid(torch.cat(weights), fill=1) if weighted else None
        zeros = [
            p.index.new_zeros(len(p), features, dtype=torch.float32) if p.state is None else p.state for p in entries
        ]
        self.state = self._laid(torch.cat(zeros)) if features else None

    def _reserve(self, wanted: Sequence[int]) -> None:
        self.sizes, self.block = sizes_for(wanted)
        self.starts = [0, *accumulate(self.sizes)][:-1]
        self._blocks: BlockTable | None = None
        self._counts: torch.Tensor | None = None
        self._firsts: torch.Tensor | None = None

    def _laid(self, tensor: torch.Tensor, fill: int = 0) -> torch.Tensor:
        """What all segments hold, one after the other, put into the slots that are reserved."""
        total = sum(self.sizes)
        if total == tensor.shape[0]:
            return tensor
        wide = tensor.new_full((total, *tensor.shape[1:]), fill)
        return wide.index_copy_(0, places(self.starts, self.lengths, tensor.device), tensor)

    @property
    def dense(self) -> int | None:
        """The length of every segment if all are alike, so that the store can be read as one dense tensor."""
        return self.lengths[0] if not self.block and len(set(self.lengths)) == 1 else None

    def dense_of(self, tensor: torch.Tensor, length: int) -> torch.Tensor:
        """A tensor of the store as ``[rows, heads, length, ...]``, without a copy; where each segment is one block."""
        return tensor.view(self.rows, self.heads, self.sizes[0], *tensor.shape[1:])[:, :, :length]

    @property
    def blocks(self) -> BlockTable:
        """Which blocks are whose."""
        self._blocks = self._blocks or BlockTable(self.sizes, self.block, self.keys.device)
        return self._blocks

    @property
    def counts(self) -> torch.Tensor:
        """``lengths`` on the device, ``[segments]`` int64."""
        if self._counts is None:
            self._counts = torch.tensor(self.lengths, device=self.keys.device)
        return self._counts

    @property
    def ends(self) -> torch.Tensor:
        """The slot behind the newest entry of each segment, ``[segments]`` int64."""
        if self._firsts is None:
            self._firsts = torch.tensor(self.starts, device=self.keys.device)
        return self._firsts + self.counts

    def run(self, segment: int) -> slice:
        """The slots that a segment holds."""
        return slice(self.starts[segment], self.starts[segment] + self.lengths[segment])

    def entries(self, segment: int) -> Entries:
        """What a segment holds, without a copy."""
        run = self.run(segment)
        return Entries(
            self.keys[run],
            self.values[run],
            self.index[run],
            None if self.weights is None else self.weights[run],
            None if self.state is None else self.state[run],
        )

    def append(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        index: torch.Tensor,
        valid: torch.Tensor | None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add tokens to every head of a row.

        Args:
            keys, values: ``[rows, heads, new, head_dim]``; index: ``[new]`` int32.
            valid: ``[rows, new]`` bool, False for padding, which is not held; None: no padding.
            weights: how many tokens each of them stands for, ``[new]`` float32; None: one.
        """
        new = keys.shape[2]
        counts = [new] * self.rows if valid is None else [int(n) for n in valid.sum(-1)]
        more = [counts[row] for row in range(self.rows) for _ in range(self.heads)]
        self._make_room(more)
        if weights is not None and self.weights is None:
            self.weights = torch.ones(self.keys.shape[0], device=self.keys.device)
        one = keys.new_ones((), dtype=torch.float32) if self.weights is not None and weights is None else weights
        kinds = [(self.keys, keys), (self.values, values), (self.index, index)]
        kinds += [(self.weights, one)] if self.weights is not None and one is not None else []
        before = self.dense if valid is None else None
        if before is not None:
            for tensor, added in kinds:
                self.dense_of(tensor, before + new)[:, :, before:] = added
            if self.state is not None:
                self.dense_of(self.state, before + new)[:, :, before:] = 0
        else:
            self._scatter(kinds, more, valid, new)
        self.lengths = [length + count for length, count in zip(self.lengths, more, strict=True)]
        if valid is None and self._counts is not None:
            self._counts += new
        else:
            self._counts = None

    def _scatter(
        self,
        kinds: Sequence[tuple[torch.Tensor, torch.Tensor]],
        more: Sequence[int],
        valid: torch.Tensor | None,
        new: int,
    ) -> None:
        """Write tokens behind the newest entries of segments of different lengths."""
        if new == 1 and valid is None:
            slots = self.ends
        else:
            ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
            slots = places(ends, more, self.keys.device)
        at = None if valid is None else valid[:, None].expand(-1, self.heads, -1)
        for tensor, added in kinds:
            wide = added.expand(self.rows, self.heads, new, *tensor.shape[1:])
            tensor.index_copy_(0, slots, wide.reshape(-1, *tensor.shape[1:]) if at is None else wide[at])
        if self.state is not None:
            self.state.index_fill_(0, slots, 0)

    def _make_room(self, counts: Sequence[int]) -> None:
        """Grow if a segment cannot take so many more; what is reserved and not held is zero, weights are one."""
        wanted = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if all(want <= size for want, size in zip(wanted, self.sizes, strict=True)):
            return
        held = self.exact()
        spare = max(self.spare, sum(wanted) // (len(wanted) * SLACK) if self.grows else 0)
        self._reserve([want + spare for want in wanted])
        for name, tensor in held.items():
            setattr(self, name, self._laid(tensor, fill=int(name == "weights")))

    def thin(self, order: torch.Tensor, lengths: Sequence[int]) -> None:
        """Keep some entries, in place.

        Args:
            order: ``[segments, columns]`` int64: slots of the entries kept first, in order, then any; lengths: how
                many are kept per segment.
        """
        if self.block:
            at = places(self.starts, lengths, order.device)
            kept = order.flatten()[places([n * order.shape[1] for n in range(len(lengths))], lengths, order.device)]
        else:
            most = max(lengths)
            kept, at = order[:, :most].flatten(), None
        for tensor in self.tensors().values():
            some = tensor.index_select(0, kept)
            if at is None:
                tensor.view(len(lengths), -1, *tensor.shape[1:])[:, :most] = some.view(-1, most, *tensor.shape[1:])
            else:
                tensor.index_copy_(0, at, some)
        self.lengths, self._counts = list(lengths), None

    def selected(self, rows: Sequence[int]) -> Store:
        """A store of these rows, in this order, copied."""
        parts = [self.entries(row * self.heads + head) for row in rows for head in range(self.heads)]
        return Store(len(rows), self.heads, self.features, parts)

    def shorten(self, counts: Sequence[int]) -> None:
        """Forget the newest entries, so many of each segment; their slots stay."""
        self.lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]
        self._counts = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name."""
        named = {"keys": self.keys, "values": self.values, "index": self.index}
        named |= {} if self.weights is None else {"weights": self.weights}
        return named | ({} if self.state is None else {"state": self.state})

    def exact(self) -> dict[str, torch.Tensor]:
        """As :meth:`tensors`, without slots that hold nothing: segments one after the other."""
        at = places(self.starts, self.lengths, self.keys.device)
        return {name: tensor.index_select(0, at) for name, tensor in self.tensors().items()}

    def layout(self) -> dict[str, torch.Tensor]:
        """What says where entries are, by name: counted as held, and not saved."""
        return {} if self._blocks is None else {f"layout.{name}": t for name, t in self._blocks.tensors().items()}


@dataclass(slots=True, eq=False)
class Encoded:
    """The oldest entries of one segment, encoded; named and shaped as in :class:`Entries`."""

    code: Code
    index: torch.Tensor
    weights: torch.Tensor | None
    state: torch.Tensor | None

    def __len__(self) -> int:
        return self.index.shape[0]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name."""
        named = {f"code.{name}": tensor for name, tensor in self.code.items()} | {"index": self.index}
        named |= {} if self.weights is None else {"weights": self.weights}
        return named | ({} if self.state is None else {"state": self.state})


@dataclass(slots=True, eq=False)
class Held:
    """All that one layer holds.

    Attributes:
        store: entries in full precision.
        codec: how older ones are encoded; None: none are. encoded: those, per segment, None where there are none.
        origins: the first keys of a segment at their own positions, where they are attended at others.
    """

    store: Store
    codec: Codec | None
    encoded: list[Encoded | None]
    origins: dict[int, torch.Tensor]

    def length(self, segment: int) -> int:
        """Entries of a segment, encoded ones included."""
        encoded = self.encoded[segment]
        return self.store.lengths[segment] + (0 if encoded is None else len(encoded))

    @property
    def plain(self) -> bool:
        """True if there is nothing but keys and values in full precision, one token each."""
        return self.store.weights is None and all(e is None for e in self.encoded)

    def column(self, segment: int, name: str) -> torch.Tensor | None:
        """``index``, ``weights`` or ``state`` of a segment, encoded entries first; None if no entry has it."""
        whole, encoded = getattr(self.store, name), self.encoded[segment]
        part: torch.Tensor | None = None if whole is None else whole[self.store.run(segment)]
        if encoded is None:
            return part
        older = getattr(encoded, name)
        if part is None and older is None:
            return None
        if part is None or older is None:  # weights: one of the two was never merged
            count = self.store.lengths[segment] if part is None else len(encoded)
            ones = encoded.index.new_ones(count, dtype=torch.float32)
            part, older = (ones, older) if part is None else (part, ones)
        return torch.cat([older, part])

    def all_keys(self, segment: int) -> torch.Tensor:
        """Keys of a segment as they are attended, decoded where encoded ``[entries, head_dim]``."""
        return self._all(segment, "keys")

    def all_values(self, segment: int) -> torch.Tensor:
        """Values, as :meth:`all_keys`."""
        return self._all(segment, "values")

    def _all(self, segment: int, name: str) -> torch.Tensor:
        part: torch.Tensor = getattr(self.store.entries(segment), name)
        encoded = self.encoded[segment]
        if encoded is None or self.codec is None:
            return part
        decode = getattr(self.codec, name)
        return torch.cat([decode(encoded.code, 0, len(encoded), part.dtype), part])

    def selected(self, rows: Sequence[int]) -> Held:
        """These rows, in this order: full-precision entries are copied, codes (which never change) are shared."""
        heads = self.store.heads
        segments = [row * heads + head for row in rows for head in range(heads)]
        encoded = [None if (e := self.encoded[s]) is None else replace(e) for s in segments]
        origins = {to: self.origins[s] for to, s in enumerate(segments) if s in self.origins}
        return Held(self.store.selected(rows), self.codec, encoded, origins)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name: this is what is counted and saved."""
        named = self.store.tensors() | self.store.layout()
        for segment, encoded in enumerate(self.encoded):
            named |= {} if encoded is None else {f"{segment}.{k}": v for k, v in encoded.tensors().items()}
        return named | {f"{segment}.origin": keys for segment, keys in self.origins.items()}
