"""RazorAttention: a few heads fetch from anywhere and keep everything; the others keep sinks, recent tokens, one mean.

Which heads fetch is found on random tokens repeated four times: an *echo* head attends to earlier occurrences of the
present token, an *induction* head to what followed them. They keep all their entries. In all other heads, what is
neither sink nor recent becomes one compensation entry, the mean of its keys and of its values, which counts for as many
tokens as it stands for (``logit += log n``).

What it does not do: there is no file of heads. The random tokens run over the full cache at the end of every prefill
(256 tokens more), so the heads are those of this model in this context. What the fetching heads leave of the budget is
shared evenly, where the paper keeps max(4000, a fifth of the tokens); where a budget is too small for all of them, the
best of them keep everything. Encoded entries are not compensated.

Source: Tang et al. 2024, RazorAttention: Efficient KV Cache Compression Through Retrieval Heads, algorithm 1 and
equations 4 and 5, https://arxiv.org/abs/2407.15891
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.adakv import whole
from tenuto.kv.policy import (
    Allocator,
    Claim,
    Drop,
    Entries,
    KVMethod,
    KVPolicy,
    Paper,
    Reducer,
    Scored,
    Scorer,
    TopK,
    View,
)

__all__ = ["Compensate", "FetchingHeads", "RazorAttention", "RepeatedTokens", "in_proportion"]

LENGTH, REPEATS = 64, 4
"""Random tokens, and how often they are repeated; together no more than the queries whose attention is seen at once."""


def in_proportion(weights: torch.Tensor, caps: torch.Tensor, total: int) -> torch.Tensor:
    """Shares ``[n]`` float64 of ``total`` in proportion to ``weights``, none above its cap: what one cannot take goes
    to the others. Evenly if all weights are zero; they add up to ``total``, or to all caps if that is less."""
    caps, shares = caps.double(), torch.zeros(len(caps), dtype=torch.float64, device=caps.device)
    open_ = caps > 0
    while bool(open_.any()):
        left = max(total - float(shares.sum()), 0.0)
        weight = weights.double() * open_
        part = weight if bool(weight.sum() > 0) else open_.double()
        part = left * part / part.sum()
        full = open_ & (part >= caps)
        if not bool(full.any()):
            return torch.where(open_, part, shares)
        shares, open_ = torch.where(full, caps, shares), open_ & ~full
    return shares


@dataclass(frozen=True, slots=True)
class RepeatedTokens(Scorer):
    """The newer, the better; and in the state of every entry the echo and induction score of its head.

    A score is the mean attention, over the queries of all repetitions but the first, to the tokens meant; of the query
    heads that share a KV head the highest counts.
    """

    features: int = 2
    observes: ClassVar[Literal["no", "calls", "replay"]] = "replay"

    def replay(self, tokens: torch.Tensor) -> Sequence[torch.Tensor]:
        if not len(tokens):
            return ()
        drawn = torch.randint(0, int(tokens.max()) + 1, (LENGTH,), generator=torch.Generator().manual_seed(0))
        return (drawn.repeat(REPEATS).to(tokens.device),)

    def observe(self, state: torch.Tensor, attention: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        count = len(index)
        at = torch.arange(count, device=index.device)
        back = at[:, None] - at
        own = attention[..., -count:]
        found = []
        for kind in (back % LENGTH == 0, (back + 1) % LENGTH == 0):
            meant = own * (kind & (back >= LENGTH - 1))
            found.append(meant.sum(-1)[:, LENGTH:].mean(-1).amax())
        return torch.stack(found).expand_as(state)

    def score(self, view: View) -> torch.Tensor:
        return view.index.float()


@dataclass(frozen=True, slots=True)
class FetchingHeads(Allocator):
    """Everything for the best heads, as far as it goes; the rest evenly.

    Attributes:
        induction: part of all KV heads that keep everything for their induction score.
        echo: part of all KV heads that keep everything for their echo score.
        extra: entries the reducer adds to a head that loses some; one that loses none has that room to itself.
    """

    joint: ClassVar[bool] = True
    induction: float = 0.14
    echo: float = 0.01
    extra: int = 1

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        if any(scored.view.state.shape[-1] != 2 for scored in layers):
            raise PolicyError("razor_attention's heads are found by its own scorer: write razor_attention first.")
        certain = torch.cat([scored.protected.sum(-1) for scored in layers])
        held = torch.cat([scored.view.counts for scored in layers])
        caps = (held - self.extra - certain).clamp(min=0)
        left = max(total - int(certain.sum()), 0)
        given, rest = torch.zeros_like(caps), torch.ones_like(caps, dtype=torch.bool)
        for head in self._best(torch.cat([scored.view.state.amax(1) for scored in layers])):
            if caps[head] <= left:
                given[head], rest[head] = caps[head], False
                left -= int(caps[head])
        left = min(left, int(caps[rest].sum()))
        given[rest] = whole(in_proportion(torch.ones_like(caps[rest]), caps[rest], left), left)
        counts = torch.where(given >= caps, held, certain + given)
        return list(counts.split([scored.scores.shape[0] for scored in layers]))

    def _best(self, scores: torch.Tensor) -> list[int]:
        """Heads that fetch, ``scores [heads, 2]`` (echo, induction): by induction, then by echo, best first."""
        order = scores.argsort(dim=0, descending=True, stable=True)
        many, few = (math.ceil(part * len(scores) - 1e-9) for part in (self.induction, self.echo))
        return list(dict.fromkeys(order[:many, 1].tolist() + order[:few, 0].tolist()))


@dataclass(frozen=True, slots=True)
class Compensate(Reducer):
    """The mean of a head's losers, as one entry that stands for as many tokens; it takes in the one of before."""

    extra: ClassVar[int] = 1

    def reduce(self, view: View, kept: torch.Tensor) -> list[Entries]:
        gone = view.held & ~kept
        anew = (gone & (view.index >= 0)).any(-1, keepdim=True)
        lost = gone | (view.held & anew & (view.index < 0))
        found = []
        for head, part in enumerate(Drop().reduce(view, kept & ~lost)):
            mine = lost[head]
            if not bool(mine.any()):
                found.append(part)
                continue
            weight = view.weights[head][mine]
            count = weight.sum()
            key, value = (
                ((x[head][mine].float() * weight[:, None]).sum(0, keepdim=True) / count).to(x.dtype)
                for x in (view.keys, view.values)
            )
            ones = view.weights.new_ones(len(part)) if part.weights is None else part.weights
            state = None if part.state is None else view.state[head][mine].amax(0, keepdim=True)
            found.append(
                Entries(
                    torch.cat([key, part.keys]),
                    torch.cat([value, part.values]),
                    torch.cat([part.index.new_full((1,), -1), part.index]),
                    torch.cat([count[None], ones]),
                    None if state is None or part.state is None else torch.cat([state, part.state]),
                )
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RazorAttention(KVMethod):
    """Heads that fetch keep everything, others sinks, recent tokens and a mean of the rest.

    Attributes:
        induction: part of all KV heads that keep everything for their induction score, from 0 to 1.
        echo: part of all KV heads that keep everything for their echo score, from 0 to 1.
        sinks: first tokens that are always kept.
        window: last tokens that are always kept.
    """

    induction: float = 0.14
    echo: float = 0.01
    sinks: int = 4
    window: int = 32

    paper: ClassVar[Paper] = Paper(
        "RazorAttention: Efficient KV Cache Compression Through Retrieval Heads",
        "Tang, Lin, Lin, Han, Ke, Hong, Yao, Wang",
        2024,
        "https://arxiv.org/abs/2407.15891",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("size of the cache", "over 70 % smaller", "without noticeable loss", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("razor_attention",)

    def __post_init__(self) -> None:
        if not (0 <= self.induction <= 1 and 0 <= self.echo <= 1) or min(self.sinks, self.window) < 0:
            raise PolicyError(
                f"razor_attention: induction={self.induction}, echo={self.echo}, sinks={self.sinks}, "
                f"window={self.window}. induction and echo must be from 0 to 1, sinks and window zero or more."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(
            scorer=RepeatedTokens(),
            allocator=FetchingHeads(self.induction, self.echo, Compensate.extra),
            selector=TopK(self.sinks, self.window),
            losers=Compensate(),
        )
