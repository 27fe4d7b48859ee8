"""What the layers of a cache are told: about the sequences they all hold, and about one forward call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import torch

from tenuto.errors import AttachError

__all__ = ["Phase", "Sequences", "Step"]


class Phase(Enum):
    """What is going on in a cache: a forward call of some kind, or a change of what it holds."""

    READY = "between two calls"
    PREFILL = "a prompt, or a turn of several tokens: compressed when the call ends"
    DEFERRED = "a chunk of a prompt: compressed with the others, after the last"
    ANSWERING = "a question or an answer that is held whole"
    DECODE = "tokens after a prompt: room is made for them before the call"
    COMPRESSION = "what is held changes: entries are evicted, taken back or put in another order"
    REPLAY = "the prompt once more, for a scorer to observe, in a compression: taken back afterwards"

    @property
    def waits(self) -> bool:
        """Whether what comes in is not compressed when the call ends."""
        return self in (Phase.DEFERRED, Phase.ANSWERING)

    @property
    def prefill(self) -> bool:
        """Whether what comes in is a prompt, or held as one."""
        return self is Phase.PREFILL or self.waits


@dataclass(slots=True, eq=False)
class Sequences:
    """What all layers share about the sequences in the cache.

    Attributes:
        columns: tokens per row so far, padding counted; seen: padding left out, per row.
        positions: RoPE position of every token so far, ``[batch, columns]`` int32.
        padding: which of them are padding, ``[batch, columns]`` bool; None: none is.
        tokens: their ids, -1 for padding, for scorers that run the prompt again; else nothing ``[batch, 0]``.
        origin: the name of the model that computed all of it, as it was then; empty before the first call, None where
            nothing of it may be kept in a store. loaded: columns that came out of one.
    """

    columns: int
    seen: list[int]
    positions: torch.Tensor
    tokens: torch.Tensor
    padding: torch.Tensor | None = None
    origin: str | None = ""
    loaded: int = 0

    @property
    def real(self) -> torch.Tensor:
        """Which tokens so far are none of padding, ``[batch, columns]`` bool."""
        return torch.ones_like(self.positions, dtype=torch.bool) if self.padding is None else ~self.padding

    def start(self, batch: int, device: Any) -> None:
        """Begin so many rows of nothing."""
        nothing = torch.zeros(batch, 0, dtype=torch.int32, device=device)
        self.seen, self.positions, self.tokens, self.padding = [0] * batch, nothing, nothing, None

    def valid(self, mask: torch.Tensor | None, new: int) -> torch.Tensor | None:
        """Which of ``new`` tokens are none of padding, ``[batch, new]`` bool, from a mask over all tokens; None: all.

        Raises:
            AttachError: the mask has another shape, or says other things of earlier tokens than it was said of them.
        """
        if mask is None:
            return None
        wanted = (len(self.seen), self.columns + new)
        if tuple(mask.shape) != wanted:
            raise AttachError(
                f"An attention mask of shape {list(mask.shape)} was given. Give one of all tokens so far and the new "
                f"ones, {list(wanted)}, or none."
            )
        given = mask.bool()
        if self.padding is None and bool(given.all()):
            return None
        last = given[:, self.columns :]
        odd, shown = torch.stack([(given[:, : self.columns] != self.real).any(), last.all()]).tolist()
        if odd:
            raise AttachError(
                "The attention mask hides tokens that the cache holds, or shows padding that it does not: what "
                "was read stays as it was. Give the mask of the earlier calls, and that of the new tokens behind it."
            )
        return None if shown else last

    def add(self, positions: torch.Tensor, counts: Sequence[int], valid: torch.Tensor | None) -> None:
        """Tokens at ``positions [batch or 1, new]``, so many of each row none of padding, come behind the others."""
        new = positions.shape[1]
        if valid is not None or self.padding is not None:
            padding = torch.zeros(len(self.seen), new, dtype=torch.bool, device=positions.device)
            self.padding = torch.cat([~self.real, padding if valid is None else ~valid], 1)
        self.positions = torch.cat([self.positions, positions.expand(len(self.seen), -1)], 1)
        self.columns += new
        self.seen = [seen + count for seen, count in zip(self.seen, counts, strict=True)]

    def take_back(self, count: int) -> None:
        """Forget the last tokens."""
        gone = self.real[:, self.columns - count :].sum(-1).tolist()
        self.columns -= count
        self.seen = [seen - lost for seen, lost in zip(self.seen, gone, strict=True)]
        self.positions, self.tokens = self.positions[:, : self.columns].clone(), self.tokens[:, : self.columns].clone()
        self.padding = None if self.padding is None else self.padding[:, : self.columns].clone()

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order."""
        at = list(rows)
        self.seen, self.positions, self.tokens = [self.seen[row] for row in at], self.positions[at], self.tokens[at]
        self.padding = None if self.padding is None else self.padding[at]

    def put_back(self, other: Sequences) -> None:
        """Be as ``other`` is."""
        for item in fields(self):
            setattr(self, item.name, getattr(other, item.name))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name."""
        padding = {} if self.padding is None else {"padding": self.padding}
        return {"positions": self.positions, "tokens": self.tokens, **padding}


@dataclass(slots=True, eq=False)
class Step:
    """One forward call.

    Attributes:
        new: tokens per row, padding counted; index: their numbers in the sequence, ``[new]`` int32.
        valid: ``[batch, new]`` bool, False for padding; None: no padding.
        weights: how many tokens each new entry stands for, ``[entries]`` float32; None: one each. Where entries stand
            for several, ``index`` is as long, and names the last token of each.
        remember: how many of the last queries to remember, 0 to leave the memory as it is.
        spare: entries a full store grows by beyond the new token; grows: or by a part of what it holds.
        now: entries each layer may hold per row, all KV heads together, if layers compress as they go; else None.
        observing: whether running state sees this call's attention.
        settle: whether what was held before may be encoded: not while a prompt is still coming.
        sparse: whether an index chooses which old pages are read; else all of them are.
    """

    new: int
    index: torch.Tensor
    valid: torch.Tensor | None
    remember: int
    spare: int
    grows: bool
    now: list[int] | None
    observing: bool
    settle: bool
    sparse: bool
    weights: torch.Tensor | None = None
