"""SemToken: neighbouring tokens that say little become one entry; dense places keep fine tokens.

Every token has a fingerprint, its state where tokens are merged, and spans of neighbours are chosen so that the sum of
their size times the variance of their fingerprints is least for the number of spans asked for; exactly so up to 8,192
tokens. A token counts more, in that sum and in the mean of its span, the rarer it is and the less could be told from
earlier places of the prompt (its *density*): a log line whose like was read before is merged before one that was not.
Numbers, names, code and template tokens cost more on top, and both ends of the prompt are merged last. The model reads
one entry per span: the weighted mean of its states, at the position of its last token, with the log of what its tokens
weigh together on its attention logits (:mod:`tenuto.prompt.read`); at ``density=0`` that is the log of its size, and a
plain mean.

What it does not do: it invents no token ids, runs no second encoder, drops nothing, and does not know the question.
The published code groups every three tokens whatever they say, and never runs a model on the result; how merged tokens
reach a model is not in the paper's code, so this is a version of the idea and not a reproduction of its figures.

Source: SemToken: Semantic-Aware Tokenization for Efficient Long-Context Language Modeling, 2025,
https://arxiv.org/abs/2508.15190
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional as F

from tenuto.errors import PolicyError
from tenuto.prompt.method import Look, PromptMethod
from tenuto.prompt.spans import Spans, coherence, split

__all__ = ["SemToken", "novelty", "rarity"]

BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SemToken(PromptMethod):
    """Merge neighbours of like meaning, first where the prompt repeats itself.

    Attributes:
        most: tokens of one span, at most.
        density: how much more a token counts that is new to the prompt: it counts ``(novelty * rarity) ** density`` in
            the cost, the mean and the count weight of its span; 0: all alike.
        protect: how much more numbers, names, code and template tokens cost; 0 for no protection but of both ends.
        context: tokens before a token that belong to its surroundings.
    """

    most: int = 16
    density: float = 1.0
    protect: float = 1.0
    context: int = 4
    name: ClassVar[str] = "semtoken"

    def __post_init__(self) -> None:
        PromptMethod.__post_init__(self)
        if self.most < 2 or self.context < 0 or min(self.density, self.protect) < 0:
            raise PolicyError(f"{self} is not allowed: most is 2 or more, density, protect and context 0 or more.")

    def choose(self, look: Look) -> Spans:
        tokens = look.ids.shape[0]
        wanted = self.count(tokens, look.layers)
        if wanted == tokens:
            return Spans.of_lengths([1] * tokens)
        prints = F.normalize(look.states - look.states.mean(0), dim=-1)
        weight = (novelty(look.embeddings, self.context) * rarity(look.ids)).clamp(min=LEAST) ** self.density
        stay = self.protect * look.marks * weight + FOREVER * self.ends(tokens).to(weight.device)
        spans = split((coherence(prints, self.most, weight) + penalties(stay, self.most)).cpu(), wanted)
        return replace(spans, weight=weight.cpu())


LEAST = 0.01
"""The least a token counts."""

FOREVER = 1e3
"""What it costs to merge one of the tokens at both ends: paid only where the ratio cannot be met otherwise."""


def penalties(stay: torch.Tensor, most: int) -> torch.Tensor:
    """The sum of ``stay [tokens]`` over the tokens of every span of two or more, as a table of costs."""
    tokens, total = stay.shape[0], stay.clone()
    table = torch.zeros(most, tokens, device=stay.device)
    for length in range(2, min(most, tokens) + 1):
        total = total[: tokens - length + 1] + stay[length - 1 :]
        table[length - 1, : tokens - length + 1] = total
    return table


def rarity(ids: torch.Tensor) -> torch.Tensor:
    """How rare each token is in the prompt, ``[tokens]`` in [0, 1]: ``log(tokens / count)`` over its largest value."""
    _, which, count = torch.unique(ids, return_inverse=True, return_counts=True)
    tokens = torch.tensor(float(max(ids.shape[0], 2)))
    rare: torch.Tensor = (tokens / count[which]).log().clamp(min=0) / tokens.log()
    return rare


def novelty(embeddings: torch.Tensor, context: int) -> torch.Tensor:
    """How little of each token could be told from earlier places of the prompt, ``[tokens]`` in [0, 1].

    An earlier place tells a token as far as both the token there and the ``context`` tokens before it are alike:
    ``cos(x_i, x_j) * mean_b cos(x_(i-b), x_(j-b))`` of the embeddings, nothing where one is negative. The novelty is 1
    minus the largest of these, over all earlier places.

    Args:
        embeddings: ``[tokens, channels]``.
    """
    tokens = embeddings.shape[0]
    centred = F.normalize(embeddings - embeddings.mean(0), dim=-1)
    likest = torch.zeros(tokens, device=embeddings.device)
    for start in range(0, tokens, BLOCK):
        stop, low = min(start + BLOCK, tokens), max(start - context, 0)
        alike = (centred[low:stop] @ centred[:stop].T).clamp_(min=0)
        around = torch.zeros_like(alike[start - low :])
        for back in range(1, context + 1):
            begin = max(start, back)
            around[begin - start :, back:] += alike[begin - back - low : stop - back - low, : stop - back]
        found = alike[start - low :] * (around / context if context else 1)
        likest[start:stop] = found.tril_(start - 1).amax(-1)
    return (1 - likest).clamp(0, 1)
