"""DropNorm: keep the tokens whose embeddings are longest, drop the others; a baseline that costs nothing.

What it does not do: look at the text around a token. Nothing is merged: what is dropped is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenuto.prompt.policy import Look, PromptMethod
from tenuto.prompt.spans import Spans

__all__ = ["DropNorm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropNorm(PromptMethod):
    """Keep the tokens whose embeddings are longest."""

    baseline: ClassVar[bool] = True

    def choose(self, look: Look) -> Spans:
        return self.best(look, look.embeddings.norm(dim=-1))
