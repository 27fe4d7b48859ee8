"""FixedGroups: groups of equal size, whatever the tokens say; a baseline.

At a ratio of 1/3 they are the groups of three that SemToken's published code makes.

What it does not do: look at the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenuto.prompt.policy import Look, PromptMethod
from tenuto.prompt.spans import Spans, even

__all__ = ["FixedGroups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedGroups(PromptMethod):
    """Groups of equal size between the tokens at both ends that stay."""

    baseline: ClassVar[bool] = True

    def choose(self, look: Look) -> Spans:
        tokens = look.ids.shape[0]
        wanted = self.count(tokens, look.layers)
        first, last = self.kept(tokens, wanted)
        inner = even(tokens - first - last, wanted - first - last)
        return Spans.of_lengths([*[1] * first, *inner, *[1] * last])
