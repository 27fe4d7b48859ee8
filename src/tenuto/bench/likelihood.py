"""Tasks without questions: how likely real text is after a compressed context, and how far the next tokens move.

Both give the tokens one by one, so that a policy that compresses while decoding does so.
"""

from __future__ import annotations

import random

import torch

from tenuto.bench.reading import Reading
from tenuto.texts.haystack import prose
from tenuto.zoo.language import LanguageModel

__all__ = ["AGREEMENT", "CONTINUED", "KL", "PERPLEXITY", "Agreement", "Perplexity", "text_of"]

PERPLEXITY, AGREEMENT, KL = "perplexity", "agreement", "agreement_kl"
CONTINUED = 64
"""Tokens after the context."""


def text_of(language: LanguageModel, seed: int, tokens: int) -> torch.Tensor:
    """So many token ids ``[1, tokens]`` of real prose, from a random sentence on."""
    sentences, count = prose(random.Random(f"prose {seed}")), tokens // 16 + 1
    while (ids := language.encode(" ".join(sentences[i % len(sentences)] for i in range(count)))).shape[1] < tokens:
        count *= 2
    return ids[:, :tokens]


class Perplexity:
    """Real text, cut after the context: scores are mean negative log-likelihoods, in nats.

    Attributes:
        context: ``[1, tokens]``; following: the true next tokens.
    """

    def __init__(self, language: LanguageModel, seed: int, tokens: int) -> None:
        ids = text_of(language, seed, tokens + CONTINUED)
        self.context, self.following = ids[:, :tokens], ids[0, tokens:]

    def scores(self, reading: Reading) -> dict[str, float]:
        """Of one row."""
        logits = reading.forced(self.following.tolist())
        return {PERPLEXITY: float(torch.nn.functional.cross_entropy(logits, self.following.to(logits.device)))}


class Agreement:
    """The uncompressed model's own greedy continuation, given token by token to the others.

    Attributes:
        context: ``[1, tokens]``.
    """

    def __init__(self, language: LanguageModel, seed: int, tokens: int) -> None:
        self.context = text_of(language, seed, tokens)
        self.uncached: tuple[list[int], torch.Tensor] | None = None

    def scores(self, reading: Reading) -> dict[str, float]:
        """Share of steps whose likeliest token is the uncompressed model's, and the mean Kullback-Leibler divergence
        from its distribution, in nats. The uncompressed model is asked first."""
        if self.uncached is None:
            said = reading.greedy(CONTINUED)
            self.uncached = (said, reading.forced(said))
        said, wanted = self.uncached
        logits = reading.forced(said)
        same = (logits.argmax(-1) == wanted.argmax(-1)).float().mean()
        p, q = wanted.log_softmax(-1), logits.log_softmax(-1)
        return {AGREEMENT: float(same), KL: float((p.exp() * (p - q)).sum(-1).mean())}
