"""SemToken: neighbouring tokens that say little become one entry; dense places keep fine tokens.

Every token has an *information*: the negative log-likelihood that adaptive n-grams over the tokens before it give it,
so a word of a wording that was read before has next to none, and a name that changes in it keeps its own. A span stands
for its most informative token, and costs the information of the others, and on top of it, for which tokens go together,
the weighted variance of its tokens' *fingerprints* (see ``coherence``). Spans of neighbours are chosen so that the sum
of costs is least for the number of spans asked for; exactly so up to 8,192 tokens. Both ends of the prompt are merged
last. The model reads one entry per span: the mean of its states weighted by information, at the position of its most
informative token, with the log of its information on its attention logits (:mod:`tenuto.prompt.read`).

What it does not do: it invents no token ids, drops nothing, and does not know the question; it runs no second encoder
unless it is asked to.
The published code groups every three tokens whatever they say, and never runs a model on the result; how merged tokens
reach a model is not in the paper's code, so this is a version of the idea and not a reproduction of its figures.

Sources: SemToken: Semantic-Aware Tokenization for Efficient Long-Context Language Modeling, 2025,
https://arxiv.org/abs/2508.15190; the n-grams are those of prediction by partial matching, with the escape estimate of
Witten and Bell, 1991 (method C), https://doi.org/10.1109/18.87000
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional as F

from tenuto.errors import PolicyError, closest
from tenuto.prompt.policy import Claim, Look, Paper, PromptMethod
from tenuto.prompt.spans import Spans, coherence, split

__all__ = ["SemToken", "information", "lost", "penalties"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SemToken(PromptMethod):
    """Merge neighbours of like meaning, first where the prompt repeats itself.

    Attributes:
        most: tokens of one span, at most.
        order: tokens before a token that may tell it, at most.
        coherence: how much the variance of its tokens' fingerprints adds to what a span costs.
        fingerprint: "states", the model's own where tokens are merged; "embeddings", its own; "sentences", of a
            sentence encoder (:mod:`tenuto.prompt.encoder`). They decide nothing where ``coherence`` is 0.
        protect: how much more it costs to lose numbers, names, code and template tokens after tokens of much
            information; 0 for no protection but of both ends.
    """

    most: int = 64
    order: int = 8
    coherence: float = 0.0
    fingerprint: str = "states"
    protect: float = 1.0

    paper: ClassVar[Paper] = Paper(
        "SemToken: Semantic-Aware Tokenization for Efficient Long-Context Language Modeling",
        "Dong Liu, Yanxuan Yu",
        2025,
        "https://arxiv.org/abs/2508.15190",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("tokens against the tokenizer's own", "up to 2.4x fewer", "WikiText-103, LongBench", "abstract"),
        Claim("speed", "up to 1.9x", "WikiText-103, LongBench", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("semtoken:ratio=0.75", "semtoken", "semtoken:ratio=0.33")

    def __post_init__(self) -> None:
        PromptMethod.__post_init__(self)
        if min(self.most - 2, self.order) < 0 or min(self.coherence, self.protect) < 0:
            raise PolicyError(f"{self} is not allowed: most is 2 or more, order, coherence and protect 0 or more.")
        if self.fingerprint not in FINGERPRINTS:
            hint = closest(self.fingerprint, FINGERPRINTS)
            raise PolicyError(f"fingerprint={self.fingerprint} is not allowed.{hint}")
        if self.fingerprint != "states" and not self.coherence:
            raise PolicyError(
                f"{self} would not look at fingerprints: give coherence as well, for example coherence=1."
            )

    @property
    def encoded(self) -> bool:
        return self.fingerprint == "sentences"

    def choose(self, look: Look) -> Spans:
        tokens = look.ids.shape[0]
        wanted = self.count(tokens, look.layers)
        if wanted == tokens:
            return Spans.of_lengths([1] * tokens)
        weight = information(look.ids.tolist(), self.order, look.vocabulary).clamp(min=LEAST)
        stay = 1 + self.protect * look.marks.cpu() * before(weight, self.order)
        cost = lost(weight * stay, self.most)
        if self.coherence:
            prints = self._fingerprints(look)
            prints = F.normalize(prints - prints.mean(0), dim=-1)
            cost += self.coherence * coherence(prints, self.most, weight.to(prints.device)).cpu()
        cost += penalties(FOREVER * self.ends(tokens), self.most)
        return replace(split(cost, wanted), weight=weight)

    def _fingerprints(self, look: Look) -> torch.Tensor:
        if self.encoded and look.meaning is not None:
            return look.meaning
        return look.embeddings if self.fingerprint == "embeddings" else look.states


FINGERPRINTS = ("states", "embeddings", "sentences")
"""What may tell that neighbours mean the same."""

LEAST = 1e-5
"""The least a token counts."""

FOREVER = 1e3
"""What it costs to merge one of the tokens at both ends: paid only where the ratio cannot be met otherwise."""


def information(ids: Sequence[int], order: int, vocabulary: int) -> torch.Tensor:
    """What each token says beyond those before it, ``[tokens]`` float32: 1 for one of a vocabulary without a prompt.

    ``-log p(token) / log(vocabulary)``, where p comes from the n-grams of the tokens before it, shortest first:
    ``p_k = (count(token) + followers * p_(k-1)) / (count + followers)``, all counted after the same k tokens, k from 0
    to ``order``, over ``p_(-1) = 1 / vocabulary``; followers are different ones.
    """
    seen: dict[tuple[int, ...], Counter[int]] = {}
    told, scale = list[float](), math.log(max(vocabulary, 2))
    for at, token in enumerate(ids):
        likely = 1 / max(vocabulary, 2)
        contexts = [tuple(ids[at - back : at]) for back in range(min(order, at) + 1)]
        for context in contexts:
            if (after := seen.get(context)) is None:
                break
            likely = (after[token] + len(after) * likely) / (after.total() + len(after))
        told.append(-math.log(likely) / scale)
        for context in contexts:
            seen.setdefault(context, Counter())[token] += 1
    return torch.tensor(told)


def before(weight: torch.Tensor, many: int) -> torch.Tensor:
    """The mean weight of so many tokens before each ``[tokens]``, fewer at the beginning; of the first: 1."""
    total = torch.cat([weight.new_zeros(1), weight.cumsum(0)])
    at = torch.arange(1, weight.shape[0])
    first = (at - max(many, 1)).clamp(min=0)
    return torch.cat([weight.new_ones(1), (total[at] - total[first]) / (at - first)])


def lost(weight: torch.Tensor, most: int) -> torch.Tensor:
    """The weight of all tokens ``[tokens]`` of every span but its heaviest, as a table of costs."""
    tokens, total, top = weight.shape[0], weight, weight
    table = torch.full((most, tokens), float("inf"))
    table[0] = 0.0
    for length in range(2, min(most, tokens) + 1):
        count, last = tokens - length + 1, weight[length - 1 :]
        total, top = total[:count] + last, torch.maximum(top[:count], last)
        table[length - 1, :count] = total - top
    return table


def penalties(stay: torch.Tensor, most: int) -> torch.Tensor:
    """The sum of ``stay [tokens]`` over the tokens of every span of two or more, as a table of costs."""
    tokens, total = stay.shape[0], stay.clone()
    table = torch.zeros(most, tokens, device=stay.device)
    for length in range(2, min(most, tokens) + 1):
        total = total[: tokens - length + 1] + stay[length - 1 :]
        table[length - 1, : tokens - length + 1] = total
    return table
