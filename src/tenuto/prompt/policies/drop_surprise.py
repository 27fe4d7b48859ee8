"""DropSurprise: keep the tokens that the model finds least likely, drop the others.

The token level of LLMLingua, judged by the model itself, which costs a whole pass over the prompt.

What it does not do: LLMLingua's smaller second model, its budget by parts of the prompt, and its question.

Source: Jiang et al. 2023, LLMLingua: Compressing Prompts for Accelerated Inference of Large Language Models,
https://arxiv.org/abs/2310.05736
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenuto.prompt.policy import Look, Paper, PromptMethod
from tenuto.prompt.spans import Spans

__all__ = ["DropSurprise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSurprise(PromptMethod):
    """Keep the tokens that the model finds least likely."""

    baseline: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "LLMLingua: Compressing Prompts for Accelerated Inference of Large Language Models",
        "Jiang, Wu, Lin, Yang, Qiu",
        2023,
        "https://arxiv.org/abs/2310.05736",
    )
    surprised: ClassVar[bool] = True

    def choose(self, look: Look) -> Spans:
        return self.best(look, look.embeddings[:, 0] if look.surprise is None else look.surprise)
