"""StreamingLLM: keep the first few tokens, which attention falls back on, and the most recent ones.

Decoding may go on for ever within the budget. The sinks are attended as if they stood directly before the recent
tokens (contiguous positions): their keys are turned after every compression, always from the originals, so that
nothing is rounded twice. The recent keys and the query stay where they are, which is the same thing relative to each
other and needs no keys before RoPE.

What it does not do: it forgets the middle, whatever is in it. It compresses every so many tokens, not every token, so
between compressions it holds up to that many fewer than the budget allows.

Source: Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Claim, Every, KVMethod, KVPolicy, Paper, Positioner, Recency, TopK, View

__all__ = ["SinksClose", "StreamingLLM"]


@dataclass(frozen=True, slots=True)
class SinksClose(Positioner):
    """The first ``turned`` keys stand directly before the next one that is kept."""

    turned: int = 4

    def shift(self, view: View) -> torch.Tensor:
        first = view.held.shape[1] - view.counts
        at = first[:, None] + torch.arange(self.turned, device=first.device)
        sinks = view.positions.gather(1, at)
        following = view.positions.gather(1, (first + self.turned)[:, None])
        return following - self.turned + torch.arange(self.turned, device=first.device) - sinks


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingLLM(KVMethod):
    """Keep the first tokens and the most recent ones.

    Attributes:
        sinks: first tokens kept.
        every: tokens decoded between two compressions.
        contiguous: attend to the sinks as if they stood directly before the recent tokens.
    """

    sinks: int = 4
    every: int = 32
    contiguous: bool = True

    paper: ClassVar[Paper] = Paper(
        "Efficient Streaming Language Models with Attention Sinks",
        "Xiao, Tian, Chen, Han, Lewis",
        2023,
        "https://arxiv.org/abs/2309.17453",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("speed against computing the window anew", "up to 22.2x", "up to 4 million tokens", "abstract"),
    )
    demo: ClassVar[Mapping[str, float]] = {"streaming_llm": 0.5}
    sweep: ClassVar[tuple[str, ...]] = ("streaming_llm",)

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.every < 1:
            raise PolicyError(
                f"streaming_llm: sinks={self.sinks}, every={self.every}. sinks must be zero or more, every at least 1."
            )

    def compose(self) -> KVPolicy:
        choices = KVPolicy(trigger=Every(self.every), scorer=Recency(), selector=TopK(sinks=self.sinks, window=1))
        if not (self.contiguous and self.sinks):
            return choices
        return KVPolicy(**(choices.choices() | {"positioner": SinksClose(self.sinks)}))
