"""The trivial answer to each question of :mod:`tenuto.kv.parts`: what a policy does where it chooses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tenuto.errors import PolicyError
from tenuto.kv.parts import Allocator, Positioner, Reducer, Scorer, Selector, Trigger
from tenuto.kv.view import Entries, Scored, View

__all__ = ["Drop", "Every", "Original", "PrefillEnd", "Recency", "TopK", "Uniform"]


@dataclass(frozen=True, slots=True)
class PrefillEnd(Trigger):
    """At the end of every prefill, to the budget. Decoded tokens stay whole until the next prefill."""

    def room(self, moment: Literal["prefill", "decode"], since: int, over: bool) -> int | None:
        return 0 if moment == "prefill" else None


@dataclass(frozen=True, slots=True)
class Every(Trigger):
    """At the end of every prefill, and while decoding whenever the budget would be passed: it never is.

    Attributes:
        tokens: how many tokens may then be decoded until the next compression.
    """

    tokens: int = 32

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise PolicyError(f"every={self.tokens} is not allowed: compress every 1 token or more.")

    def room(self, moment: Literal["prefill", "decode"], since: int, over: bool) -> int | None:
        if moment == "prefill":
            return 0
        return self.tokens if over else None


@dataclass(frozen=True, slots=True)
class Recency(Scorer):
    """The newer, the better."""

    alone: ClassVar[bool] = True

    def score(self, view: View) -> torch.Tensor:
        return view.index.float()


@dataclass(frozen=True, slots=True)
class Uniform(Allocator):
    """The same for every layer and head."""

    even: ClassVar[bool] = True

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        heads = sum(scored.scores.shape[0] for scored in layers)
        return [torch.full((scored.scores.shape[0],), total // heads) for scored in layers]


@dataclass(frozen=True, slots=True)
class TopK(Selector):
    """The highest scores of each head, the older of equals first.

    Attributes:
        sinks, window: first and last entries that are always kept.
    """

    sinks: int = 0
    window: int = 0
    alone: ClassVar[bool] = True

    def select(self, scored: Scored, counts: torch.Tensor) -> torch.Tensor:
        scores = scored.scores.masked_fill(scored.protected, float("inf"))
        order = scores.argsort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(scores.shape[1], device=scores.device)
        chosen = (ranks < counts.to(scores.device)[:, None]).to(torch.uint8)
        return torch.zeros_like(chosen).scatter_(1, order, chosen)


@dataclass(frozen=True, slots=True)
class Drop(Reducer):
    """Losers are gone."""

    weighs: ClassVar[bool] = False

    def reduce(self, view: View, kept: torch.Tensor) -> list[Entries]:
        weighted, stateful = bool((view.weights != 1).any()), view.state.shape[-1] > 0
        found = []
        for head in range(kept.shape[0]):
            at = kept[head].nonzero()[:, 0]
            found.append(
                Entries(
                    view.keys[head, at],
                    view.values[head, at],
                    view.index[head, at].int(),
                    view.weights[head, at] if weighted else None,
                    view.state[head, at] if stateful else None,
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class Original(Positioner):
    """Where it was."""

    def shift(self, view: View) -> torch.Tensor:
        return view.positions[:, :0]
