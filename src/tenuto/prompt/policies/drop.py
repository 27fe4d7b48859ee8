"""Keep some tokens, drop the others: by how surprising they are, or by the norm of their embedding.

By surprise is the token level of LLMLingua (https://arxiv.org/abs/2310.05736), judged by the model itself, which costs
a whole pass over the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.prompt.policy import Look, PromptMethod
from tenuto.prompt.spans import Spans

__all__ = ["DropNorm", "DropSurprise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropNorm(PromptMethod):
    """Keep the tokens whose embeddings are longest."""

    name: ClassVar[str] = "drop_norm"

    def choose(self, look: Look) -> Spans:
        return _best(self, look, look.embeddings.norm(dim=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSurprise(PromptMethod):
    """Keep the tokens that the model finds least likely."""

    name: ClassVar[str] = "drop_surprise"
    surprised: ClassVar[bool] = True

    def choose(self, look: Look) -> Spans:
        return _best(self, look, look.embeddings[:, 0] if look.surprise is None else look.surprise)


def _best(method: PromptMethod, look: Look, scores: torch.Tensor) -> Spans:
    """The tokens at both ends, then the highest scores, in the order of the text."""
    tokens = scores.shape[0]
    stay = scores.cpu().masked_fill(method.ends(tokens), float("inf"))
    return Spans.of_tokens(stay.topk(method.count(tokens, look.layers)).indices.sort().values)
