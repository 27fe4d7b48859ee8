"""H2O: keep the tokens that received the most attention so far (heavy hitters) and the most recent ones.

The attention every entry receives is added up as it happens, over the prompt and over every decoded token, and stays
with the entry; at the end of the prompt, and then before each decoded token that would pass the budget, the entries of
the least sum go. The heads that share a KV head are added up.

What it does not do: it forgets nothing of what an entry once received, so old tokens have had more time to collect.
Attention must be written out to be added up, which costs prefill time, and cannot be taken back (no assisted decoding).
Many tables call a method H2O that scores the prompt once; this is the running one.

Source: Zhang et al. 2023, H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models,
algorithm 1, https://arxiv.org/abs/2306.14048
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Claim, Every, KVMethod, KVPolicy, Paper, Scored, Scorer, Selector, TopK, View

__all__ = ["H2O", "HeavyRecent", "ReceivedAttention"]


@dataclass(frozen=True, slots=True)
class ReceivedAttention(Scorer):
    """``S_i += A[t, i]`` for every query t while entry i is held, added up over the group."""

    features: int = 1
    observes: ClassVar[Literal["no", "calls", "replay"]] = "calls"
    alone: ClassVar[bool] = True

    def observe(self, state: torch.Tensor, attention: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return state + attention.sum((-3, -2))[..., None]

    def score(self, view: View) -> torch.Tensor:
        return view.state[..., 0]


@dataclass(frozen=True, slots=True)
class HeavyRecent(Selector):
    """The last ``recent`` part of what a head may keep, rounded down, and the highest scores of all before."""

    recent: float = 0.5
    sinks: int = 0
    window: int = 0
    alone: ClassVar[bool] = True

    def select(self, scored: Scored, counts: torch.Tensor) -> torch.Tensor:
        columns = scored.scores.shape[1]
        window = (counts.to(scored.scores.device) * self.recent).long()
        last = torch.arange(columns, device=window.device) >= columns - window[:, None]
        return TopK().select(Scored(scored.view, scored.scores, scored.protected | last), counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class H2O(KVMethod):
    """Keep heavy hitters and recent tokens.

    Attributes:
        recent: part of the budget that goes to the most recent tokens, from 0 to 1.
        every: tokens decoded between two compressions.
    """

    recent: float = 0.5
    every: int = 1

    paper: ClassVar[Paper] = Paper(
        "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
        "Zhang, Sheng, Zhou, Chen, Zheng, Cai, Song, Tian, Ré, Barrett, Wang, Chen",
        2023,
        "https://arxiv.org/abs/2306.14048",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "throughput against DeepSpeed ZeRO-Inference, Accelerate and FlexGen",
            "up to 29x, 29x and 3x",
            "OPT-6.7B, OPT-30B, 20 % heavy hitters",
            "abstract",
        ),
        Claim("latency at the same batch", "up to 1.9x lower", "OPT-6.7B, OPT-30B", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("h2o",)

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1 or self.every < 1:
            raise PolicyError(
                f"h2o: recent={self.recent}, every={self.every}. recent must be from 0 to 1, every at least 1."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(trigger=Every(self.every), scorer=ReceivedAttention(), selector=HeavyRecent(self.recent))
