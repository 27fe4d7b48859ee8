"""What the layers of a cache are told: about the sequences they all hold, and about one forward call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

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
        tokens: their ids, -1 for padding, for scorers that run the prompt again; else nothing ``[batch, 0]``.
        origin: the name of the model that computed all of it, as it was then; empty before the first call, None where
            nothing of it may be kept in a store. loaded: columns that came out of one.
    """

    columns: int
    seen: list[int]
    positions: torch.Tensor
    tokens: torch.Tensor
    origin: str | None = ""
    loaded: int = 0


@dataclass(slots=True, eq=False)
class Step:
    """One forward call.

    Attributes:
        new: tokens per row, padding counted; index: their numbers in the sequence, ``[new]`` int32.
        valid: ``[batch, new]`` bool, False for padding; None: no padding.
        weights: how many tokens each new entry stands for, ``[entries]`` float32; None: one each. Where entries stand
            for several, ``index`` is as long, and names the last token of each.
        remember: how many of the last queries to remember, 0 to leave the memory as it is.
        spare: entries a full store grows by beyond the new token.
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
    now: list[int] | None
    observing: bool
    settle: bool
    sparse: bool
    weights: torch.Tensor | None = None
