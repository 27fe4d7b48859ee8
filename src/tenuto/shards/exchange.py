"""How ranks exchange what they found: the contract, and the one of a single process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Exchange", "Local", "Traffic"]


@dataclass(slots=True)
class Traffic:
    """What one rank has put on the wire, each byte once for all that receive it.

    Attributes:
        collectives, bytes: of partial attention (and, with data-parallel attention, of new tokens) in decoding.
        prefill_collectives, prefill_bytes: the same in calls of several tokens.
        moved_bytes: keys and values of older tokens that were moved, in prefills only.
    """

    collectives: int = 0
    bytes: int = 0
    prefill_collectives: int = 0
    prefill_bytes: int = 0
    moved_bytes: int = 0

    def note(self, size: int, decoding: bool) -> None:
        """A collective of ``size`` bytes."""
        if decoding:
            self.collectives, self.bytes = self.collectives + 1, self.bytes + size
        else:
            self.prefill_collectives, self.prefill_bytes = self.prefill_collectives + 1, self.prefill_bytes + size


class Exchange(ABC):
    """Joins the ranks of a sharded cache.

    Attributes:
        rank: of this process; ranks: how many there are; traffic: what was sent.
        alike: whether ranks are given the same rows; decoding: whether the present call is one token per row.
        turn: held while a call runs, where calls of several threads must not mix.
    """

    rank: int = 0
    ranks: int = 1
    alike: bool = True

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.turn: AbstractContextManager[Any] = nullcontext()
        self.decoding = False

    @abstractmethod
    def agree(self, facts: dict[str, str]) -> None:
        """All ranks must say the same, however long it is.

        Raises:
            AttachError: they do not; on all ranks, with the name of what differs.
        """

    @abstractmethod
    def begin(self, valid: torch.Tensor, facts: Mapping[str, int]) -> torch.Tensor:
        """A call of the model starts: which tokens are real, in all rows whose entries are sharded here.

        Args:
            valid: in this rank's rows ``[batch, new]`` bool; facts: what must be the same on all ranks.

        Raises:
            AttachError: ranks were given other calls; on all ranks, with the name of what differs.
        """

    @abstractmethod
    def rows(self, mine: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors of all rows that are sharded here, from those of this rank's rows; rows first."""

    @abstractmethod
    def combine(self, packed: torch.Tensor) -> torch.Tensor:
        """What each rank found for this rank's rows ``[ranks, batch, ...]``, from what this rank found for all rows
        that are sharded here ``[rows, ...]`` uint8.

        Raises:
            StoreError: a rank does not answer.
        """

    @abstractmethod
    def visit(self, mine: torch.Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Every rank and its bytes, this one's first; ``sizes`` are all ranks' numbers of bytes.

        Raises:
            StoreError: a rank does not answer.
        """

    @property
    def others(self) -> int:
        """Rows of other ranks that come before this one's, as a multiple of its own."""
        return 0


class Local(Exchange):
    """One process that holds all shards."""

    def agree(self, facts: dict[str, str]) -> None:
        """Nobody to disagree with."""

    def begin(self, valid: torch.Tensor, facts: Mapping[str, int]) -> torch.Tensor:
        return valid

    def rows(self, mine: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(mine)

    def combine(self, packed: torch.Tensor) -> torch.Tensor:
        return packed[None]

    def visit(self, mine: torch.Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        yield 0, mine
