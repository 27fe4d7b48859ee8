"""The contract of a selector: which pages a decoding step reads.

The budget is in tokens read, not in shards or pages. Sinks and the recent window are always read, token by token,
wherever they lie. What is left of the budget goes to the pages of the highest score. Prefills read everything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tenuto.errors import PolicyError
from tenuto.shards.table import Table

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["Asked", "Selector"]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a selector may look at, of one row in one layer.

    Attributes:
        layer: its number in the model; queries: of the new token ``[heads, head_dim]``; scaling: of the logits.
        counts: tokens per page ``[pages]``; newest: number of the last token in each page ``[pages]``.
        summaries: those of :class:`Table` that the selector needs; ``experts`` may be missing.
        router: what the router of the layer before gave each expert for the new token ``[experts]``, probabilities;
            None: no such router.
    """

    layer: int
    queries: torch.Tensor
    scaling: float
    counts: torch.Tensor
    newest: torch.Tensor
    summaries: dict[str, torch.Tensor]
    router: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector(ABC):
    """Which pages are read?

    Attributes:
        keep: tokens read, as a share of the tokens held, sinks and window included, in (0, 1].
        sinks: first tokens, which are always read.
        window: last tokens, which are always read.
        penalty: what a page in a lower tier loses of its score, because reading it is a fetch. (PiKV's term, but for
            what reading costs now and not for what was missed before.)

    Raises:
        PolicyError: a number that is not allowed.
    """

    keep: float = 0.125
    sinks: int = 4
    window: int = 32
    penalty: float = 0.0

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse numbers that are not allowed."""
        if not 0 < self.keep <= 1 or min(self.sinks, self.window, self.penalty) < 0:
            raise PolicyError(
                f"{type(self).__name__}: keep={self.keep:g}, sinks={self.sinks}, window={self.window}, "
                f"penalty={self.penalty:g}. "
                "keep must be in (0, 1], the others zero or more."
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the summaries that are looked at."""
        return ()

    @property
    def routed(self) -> bool:
        """Whether the router's choices are asked for."""
        return "experts" in self.needs

    @property
    def learnt(self) -> Profile | None:
        """The profile it goes by, which must be of the same model; None: it needs none."""
        return None

    @abstractmethod
    def score(self, asked: Asked) -> torch.Tensor:
        """What each page is worth ``[pages]`` float32, as the logarithm of a share of attention where it can be."""

    def choose(self, table: Table, score: torch.Tensor, seen: int) -> torch.Tensor:
        """Which slots are read ``[pages, page]`` bool, of a row of ``seen`` tokens; ``score [pages]``."""
        held = table.index >= 0
        always = held & ((table.index < self.sinks) | (table.index >= seen - self.window))
        left = max(int(self.keep * int(held.sum())) - int(always.sum()), 0)
        sizes = (held & ~always).sum(-1)
        order = score.masked_fill(sizes == 0, float("-inf")).argsort(descending=True, stable=True)
        fits = order[sizes[order].cumsum(0) <= left]
        chosen = torch.zeros_like(sizes, dtype=torch.bool)
        chosen[fits] = True
        return always | (held & chosen[:, None])
