"""Groups of equal size, whatever the tokens say: at a ratio of 1/3 the groups of three that SemToken's code makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenuto.prompt.policy import Look, PromptMethod
from tenuto.prompt.spans import Spans, even

__all__ = ["FixedGroups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedGroups(PromptMethod):
    """Groups of equal size between the tokens at both ends that stay."""

    name: ClassVar[str] = "fixed"

    def choose(self, look: Look) -> Spans:
        tokens = look.ids.shape[0]
        wanted = self.count(tokens, look.layers)
        first, last = self.kept(tokens, wanted)
        inner = even(tokens - first - last, wanted - first - last)
        return Spans.of_lengths([*[1] * first, *inner, *[1] * last])
