"""Where the entries of one layer are held: each row and KV head has its own length, and only that much memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tenuto.kv.parts import Codec
from tenuto.kv.view import Code, Entries

__all__ = ["ROOM", "Encoded", "Held", "Store"]

ROOM = 16
"""Entries per head a full layer grows by while decoding, at most."""


class Store:
    """Entries in full precision, one flat tensor per kind; *segment* ``row * heads + head`` is a run of it.

    Attributes:
        rows, heads: batch rows and KV heads.
        keys, values: ``[slots, head_dim]``; index: ``[slots]`` int32; weights: ``[slots]`` float32, None while every
            entry is one token; state: ``[slots, features]`` float32, None if the policy keeps none.
        starts, lengths, sizes: first slot, entries held and slots reserved per segment.
        spare: slots a segment gets beyond what it needs, when it must grow.
    """

    def __init__(self, rows: int, heads: int, features: int, entries: Sequence[Entries]) -> None:
        self.rows, self.heads, self.features, self.spare = rows, heads, features, 0
        self.lengths = [len(part) for part in entries]
        self._reserve(self.lengths)
        weighted = any(part.weights is not None for part in entries)
        self.keys = torch.cat([part.keys for part in entries])
        self.values = torch.cat([part.values for part in entries])
        self.index = torch.cat([part.index for part in entries])
        ones = self.index.new_ones
        self.weights = (
            torch.cat([ones(len(p), dtype=torch.float32) if p.weights is None else p.weights for p in entries])
            if weighted
            else None
        )
        zeros = [
            p.index.new_zeros(len(p), features, dtype=torch.float32) if p.state is None else p.state for p in entries
        ]
        self.state = torch.cat(zeros) if features else None

    def _reserve(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.starts = [0]
        for size in self.sizes[:-1]:
            self.starts.append(self.starts[-1] + size)

    @property
    def dense(self) -> int | None:
        """The length of every segment if all are alike, so that the store can be read as one dense tensor."""
        alike = len(set(self.lengths)) == 1 and len(set(self.sizes)) == 1
        return self.lengths[0] if alike else None

    def dense_of(self, tensor: torch.Tensor, length: int) -> torch.Tensor:
        """A tensor of the store as ``[rows, heads, length, ...]``, without a copy; for a dense store."""
        return tensor.view(self.rows, self.heads, self.sizes[0], *tensor.shape[1:])[:, :, :length]

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
        self._make_room([counts[row] for row in range(self.rows) for _ in range(self.heads)])
        if weights is not None and self.weights is None:
            self.weights = torch.ones(self.keys.shape[0], device=self.keys.device)
        before = self.dense if valid is None else None
        if before is not None:
            self.lengths = [before + new] * len(self.lengths)
            self.dense_of(self.keys, before + new)[:, :, before:] = keys
            self.dense_of(self.values, before + new)[:, :, before:] = values
            self.dense_of(self.index, before + new)[:, :, before:] = index
            if weights is not None and self.weights is not None:
                self.dense_of(self.weights, before + new)[:, :, before:] = weights
            return
        for segment in range(len(self.lengths)):
            row, head = divmod(segment, self.heads)
            at = slice(None) if valid is None else valid[row]
            start = self.starts[segment] + self.lengths[segment]
            run = slice(start, start + counts[row])
            self.keys[run], self.values[run], self.index[run] = keys[row, head, at], values[row, head, at], index[at]
            if weights is not None and self.weights is not None:
                self.weights[run] = weights[at]
            self.lengths[segment] += counts[row]

    def _make_room(self, counts: Sequence[int]) -> None:
        """Grow segments that cannot take so many more; what is reserved and not held is zero, weights are one."""
        wanted = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if all(want <= size for want, size in zip(wanted, self.sizes, strict=True)):
            return
        old, lengths = (self.keys, self.values, self.index, self.weights, self.state), self.lengths
        starts = self.starts
        sizes = [max(want + self.spare, size) for want, size in zip(wanted, self.sizes, strict=True)]
        self._reserve(sizes)
        grown: list[torch.Tensor | None] = []
        for tensor in old:
            if tensor is None:
                grown.append(None)
                continue
            fill = torch.ones if tensor is self.weights else torch.zeros
            bigger = fill((sum(sizes), *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
            for start, length, to in zip(starts, lengths, self.starts, strict=True):
                bigger[to : to + length] = tensor[start : start + length]
            grown.append(bigger)
        self.keys, self.values, self.index, self.weights, self.state = grown  # type: ignore[assignment]

    def selected(self, rows: Sequence[int]) -> Store:
        """A store of these rows, in this order, copied."""
        parts = [self.entries(row * self.heads + head) for row in rows for head in range(self.heads)]
        return Store(len(rows), self.heads, self.features, parts)

    def shorten(self, counts: Sequence[int]) -> None:
        """Forget the newest entries, so many of each segment. What they were is gone, their slots stay."""
        for segment, count in enumerate(counts):
            self.lengths[segment] -= count
        for name in ("weights", "state"):
            tensor = getattr(self, name)
            if tensor is not None:
                for segment, start in enumerate(self.starts):
                    tensor[start + self.lengths[segment] : start + self.sizes[segment]] = float(name == "weights")

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name."""
        named = {"keys": self.keys, "values": self.values, "index": self.index}
        named |= {} if self.weights is None else {"weights": self.weights}
        return named | ({} if self.state is None else {"state": self.state})


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
        named = self.store.tensors()
        for segment, encoded in enumerate(self.encoded):
            named |= {} if encoded is None else {f"{segment}.{k}": v for k, v in encoded.tensors().items()}
        return named | {f"{segment}.origin": keys for segment, keys in self.origins.items()}
