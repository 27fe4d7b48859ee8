"""How many slots the segments of a store get, and where they lie. All of it is known on the host."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

__all__ = ["SLACK", "BlockTable", "places", "sizes_for"]

SLACK = 32
"""One slot in so many may be empty where segments are of different lengths."""


def sizes_for(wanted: Sequence[int]) -> tuple[list[int], int]:
    """Slots for segments that are to hold so many entries, and of how many slots a block is.

    Segments of close lengths get as many slots each, and are one block each (0 is given). Others get whole blocks, of a
    power of two of slots; either way no more than one slot in :data:`SLACK` is left over.
    """
    total, longest = sum(wanted), max(wanted, default=0)
    if longest * len(wanted) * SLACK <= total * (SLACK + 1):
        return [longest] * len(wanted), 0
    block = 1 << max(min(total // (len(wanted) * SLACK), 64).bit_length() - 1, 0)
    return [-(-want // block) * block for want in wanted], block


def places(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> torch.Tensor:
    """The slots ``start ... start + count - 1`` of every segment, one after the other, int64."""
    total = sum(counts)
    before = [0, *accumulate(counts)][:-1]
    shift = torch.tensor([start - past for start, past in zip(starts, before, strict=True)])
    return (shift.repeat_interleave(torch.tensor(counts), output_size=total) + torch.arange(total)).to(device)


class BlockTable:
    """What attention needs to know of blocks, on the device, int32.

    Attributes:
        owner: segment of each block, ``[blocks]``.
        table: blocks of each segment in order, ``[segments * most]``; a segment of fewer than ``most`` repeats block 0.
        back: where in ``table`` each block is, ``[blocks]``.
        most: blocks of the segment that has most.
    """

    def __init__(self, sizes: Sequence[int], block: int, device: torch.device) -> None:
        counts = [size // block for size in sizes]
        self.most = max(counts)
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts), output_size=sum(counts))
        back = places([number * self.most for number in range(len(counts))], counts, torch.device("cpu"))
        table = torch.zeros(len(counts) * self.most, dtype=torch.int32)
        table[back] = torch.arange(len(back), dtype=torch.int32)
        self.owner, self.table, self.back = (x.to(device, torch.int32) for x in (owner, table, back))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name."""
        return {"owner": self.owner, "table": self.table, "back": self.back}
