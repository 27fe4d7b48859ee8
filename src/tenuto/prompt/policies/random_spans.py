"""RandomSpans: borders drawn at random, whatever the tokens say; the baseline that any choice of borders has to beat.

What it does not do: look at the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from tenuto.prompt.policy import Look, PromptMethod
from tenuto.prompt.spans import Spans

__all__ = ["RandomSpans"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSpans(PromptMethod):
    """Spans with borders drawn at random between the tokens at both ends that stay.

    Attributes:
        seed: of the draw.
    """

    seed: int = 0

    aliases: ClassVar[Mapping[str, str]] = {"random": "random_spans"}
    baseline: ClassVar[bool] = True

    def choose(self, look: Look) -> Spans:
        tokens = look.ids.shape[0]
        wanted = self.count(tokens, look.layers)
        first, last = self.kept(tokens, wanted)
        inner, groups = tokens - first - last, wanted - first - last
        borders = sorted(random.Random(self.seed).sample(range(1, inner), groups - 1)) if groups > 0 else []
        lengths = [b - a for a, b in pairwise([0, *borders, inner])] if groups > 0 else []
        return Spans.of_lengths([*[1] * first, *lengths, *[1] * last])
