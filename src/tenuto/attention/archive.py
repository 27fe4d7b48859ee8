"""Where an attention keeps the raw keys and values of chunks that have left its window: the long-term level.

Chunk ``j`` of a row is the ``j``-th run of ``chunk`` tokens behind the sinks. Reading gives chosen chunks per query.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from itertools import count

import torch

from tenuto.errors import StoreError
from tenuto.tiers.codec import PageCodec
from tenuto.tiers.page import PageFacts, decode, encode
from tenuto.tiers.tier import Tier

__all__ = ["Archive", "InCall", "InMemory", "InTier", "chosen_from", "take"]

SLAB = 64
"""Chunks by which the memory of an archive grows at a time."""

FEW = 32
"""Times as many chunks as are recalled, up to which a whole sequence attends to all of them under a mask."""


class Archive(ABC):
    """Chunks of a batch of rows."""

    @abstractmethod
    def put(self, k: torch.Tensor, v: torch.Tensor, number: torch.Tensor, valid: torch.Tensor) -> None:
        """Keep new chunks.

        Args:
            k, v: ``[batch, kv_heads, chunks, chunk, head_dim]``; number: of each in its row ``[batch, chunks]``;
            valid: which of them there are ``[batch, chunks]`` bool.
        """

    @abstractmethod
    def read(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of chunks by number ``[batch, kv_heads, queries, picks]``; a number that was never put gives
        anything finite. Both are ``[batch, kv_heads, queries, picks, chunk, head_dim]``."""

    @abstractmethod
    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows ``[rows]`` int64, in this order."""

    @abstractmethod
    def copied(self) -> Archive:
        """A copy that goes on by itself."""

    @abstractmethod
    def held(self) -> dict[str, int]:
        """Bytes by tier."""


def take(chunks: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Of ``[batch, kv_heads, chunks, chunk, head_dim]`` those in ``chosen`` ``[batch, kv_heads, queries, picks]``."""
    batch, heads, _, chunk, width = chunks.shape
    flat = chosen.flatten(2)[..., None].expand(-1, -1, -1, chunk * width)
    return chunks.flatten(3).gather(2, flat).view(batch, heads, *chosen.shape[2:], chunk, width)


class InCall(Archive):
    """The chunks of one call that has no state: nothing is copied, and gradients flow."""

    def __init__(self) -> None:
        self.k = self.v = torch.empty(0)

    def put(self, k: torch.Tensor, v: torch.Tensor, number: torch.Tensor, valid: torch.Tensor) -> None:
        """Once: all of them."""
        self.k, self.v = k, v

    def read(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Archive`."""
        return take(self.k, chosen), take(self.v, chosen)

    def select(self, rows: torch.Tensor) -> None:
        """A call's rows stay as they are."""
        raise NotImplementedError

    def copied(self) -> InCall:
        """A call keeps nothing."""
        return InCall()

    def held(self) -> dict[str, int]:
        """Nothing after the call."""
        return {}


class InMemory(Archive):
    """Chunks in the memory of the host, as they were computed, without gradients; they come back to where they were."""

    def __init__(self) -> None:
        self._k = self._v = torch.empty(0)
        self._device = torch.device("cpu")

    @torch.inference_mode(False)
    @torch.no_grad()
    def put(self, k: torch.Tensor, v: torch.Tensor, number: torch.Tensor, valid: torch.Tensor) -> None:
        """See :class:`Archive`."""
        self._device = k.device
        most = int(torch.where(valid, number, -1).max()) + 1
        self._grow(k, most)
        row, place = valid.nonzero(as_tuple=True)
        at = number[row, place].cpu()
        self._k[row.cpu(), :, at] = k.detach()[row, :, place].to(self._k.device)
        self._v[row.cpu(), :, at] = v.detach()[row, :, place].to(self._v.device)

    def _grow(self, like: torch.Tensor, chunks: int) -> None:
        have = self._k.shape[2] if self._k.dim() == 5 else 0
        if chunks > have:
            batch, heads, _, *rest = like.shape
            shape = (batch, heads, -(-chunks // SLAB) * SLAB - have, *rest)
            room = torch.zeros(shape, dtype=like.dtype)
            self._k, self._v = (torch.cat([old, room], 2) if have else room.clone() for old in (self._k, self._v))

    def read(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Archive`."""
        at = chosen.cpu()
        return take(self._k, at).to(self._device), take(self._v, at).to(self._device)

    def select(self, rows: torch.Tensor) -> None:
        """See :class:`Archive`."""
        with torch.inference_mode(False):
            self._k, self._v = self._k[rows.cpu()], self._v[rows.cpu()]

    def copied(self) -> InMemory:
        """See :class:`Archive`."""
        other = InMemory()
        with torch.inference_mode(False):
            other._k, other._v, other._device = self._k.clone(), self._v.clone(), self._device
        return other

    def held(self) -> dict[str, int]:
        """All that is reserved."""
        return {"host": self._k.nbytes + self._v.nbytes}


class InTier(Archive):
    """Chunks as pages of a store, one per row and chunk, through a codec; rows that were one share their pages.

    Pages stay in the store until it drops them: give a store with a limit, or a folder that is removed afterwards.
    """

    def __init__(self, tier: Tier, codec: PageCodec) -> None:
        self._tier, self._codec, self._space, self._next = tier, codec, secrets.token_hex(16), count()
        self._rows: list[dict[int, str]] = []
        self._sizes: dict[str, int] = {}
        self._shape: tuple[int, int, int] = (0, 0, 0)
        self._dtype, self._device = torch.float32, torch.device("cpu")

    def put(self, k: torch.Tensor, v: torch.Tensor, number: torch.Tensor, valid: torch.Tensor) -> None:
        """See :class:`Archive`.

        Raises:
            StoreError: the store did not take a page.
        """
        self._dtype, self._device, self._shape = k.dtype, k.device, (k.shape[1], k.shape[3], k.shape[4])
        self._rows = self._rows or [{} for _ in range(len(k))]
        for row, place in valid.nonzero().tolist():
            tensors = self._codec.encode(k[row, :, place].detach()[None].cpu(), v[row, :, place].detach()[None].cpu())
            name, at = f"{self._space}.{next(self._next)}", int(number[row, place])
            start = at * k.shape[3]
            facts = PageFacts(
                model=self._space, dtype=str(k.dtype), codec=str(self._codec), start=start, stop=start + k.shape[3]
            )
            data = encode(tensors, facts)
            self._tier.put(name, data)
            self._rows[row][at], self._sizes[name] = name, len(data)

    def read(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Archive`.

        Raises:
            StoreError: the store has lost a page, or gives one that is damaged.
        """
        k, v = list[torch.Tensor](), list[torch.Tensor]()
        for row, wanted in enumerate(chosen.cpu()):
            held = self._rows[row] if self._rows else {}
            numbers, inverse = wanted.unique(return_inverse=True)
            known = [n for n in numbers.tolist() if n in held]
            pages = dict(zip(known, self._tier.get_many([held[n] for n in known]), strict=True))
            empty = torch.zeros(self._shape, dtype=self._dtype)
            found = [self._decoded(n, pages[n]) if n in pages else (empty, empty) for n in numbers.tolist()]
            for parts, into in zip(zip(*found, strict=True), (k, v), strict=True):
                chunks = torch.stack(parts, 1)[None]  # [1, kv_heads, chunks, chunk, head_dim]
                into.append(take(chunks, inverse[None]))
        return torch.cat(k).to(self._device), torch.cat(v).to(self._device)

    def _decoded(self, number: int, data: bytes | None) -> tuple[torch.Tensor, torch.Tensor]:
        if data is None:
            raise StoreError(
                f"Chunk {number} is no longer in the store of the long-term level. Give the store more room, and start "
                "the text again."
            )
        keys, values = self._codec.decode(decode(data).tensors, self._dtype)
        return keys[0], values[0]

    def select(self, rows: torch.Tensor) -> None:
        """See :class:`Archive`."""
        self._rows = [dict(self._rows[row]) for row in rows.tolist()]

    def copied(self) -> InTier:
        """See :class:`Archive`. Pages never change, so both name the same ones."""
        other = InTier(self._tier, self._codec)
        other._rows, other._sizes = [dict(row) for row in self._rows], dict(self._sizes)
        other._shape, other._dtype, other._device = self._shape, self._dtype, self._device
        return other

    def held(self) -> dict[str, int]:
        """Bytes of the pages that rows still name, each once."""
        names = {name for row in self._rows for name in row.values()}
        return {"store": sum(self._sizes[name] for name in names)}


def chosen_from(
    archive: Archive | None, chosen: torch.Tensor, there: torch.Tensor, chunks: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values ``[batch, kv_heads, queries or 1, keys, head_dim]`` of chunks, and which keys are seen.

    They are read one by one; where all are here and few, all of them are given and a mask tells, which is faster.

    Args:
        chosen: numbers ``[batch, kv_heads, queries, picks]``; there: which of these exist; chunks: how many may.
    """
    if archive is None:
        raise ValueError("no archive")
    if isinstance(archive, InCall) and chunks <= FEW * chosen.shape[-1]:
        k, v = (part[:, :, None, :chunks].flatten(3, 4) for part in (archive.k, archive.v))
        seen = torch.zeros(*chosen.shape[:3], chunks, dtype=torch.bool, device=k.device).scatter(3, chosen, there)
    else:
        k, v = (part.flatten(3, 4) for part in archive.read(chosen))
        seen = there
    return k, v, seen.repeat_interleave(k.shape[3] // seen.shape[3], -1)
