"""The contract of the prompt family: which neighbouring tokens of a prompt become one entry.

A :class:`PromptMethod` is a frozen dataclass of numbers. It sees a :class:`Look` at one prompt and gives
:class:`~tenuto.prompt.spans.Spans`; :mod:`tenuto.prompt.read` does the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.method import Method
from tenuto.paper import Claim, Paper
from tenuto.prompt.spans import Spans

__all__ = ["Claim", "Look", "Paper", "PromptMethod"]


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a decision may look at: one prompt.

    Attributes:
        ids: token ids ``[tokens]``; embeddings, states: of the tokens, before the first layer and before the layer
            where they are merged, ``[tokens, channels]``.
        marks: how much each token should stay by itself, ``[tokens]`` float32, 0 for most, see
            :mod:`tenuto.prompt.protect`.
        surprise: negative log-likelihood of each token under the model, in nats ``[tokens]``, infinite for the first;
            None unless the method asks for it, since it takes a whole pass.
        meaning: fingerprints by a sentence encoder ``[tokens, channels]``; None unless the method asks for them.
        layers, vocabulary: how many the model has.
    """

    ids: torch.Tensor
    embeddings: torch.Tensor
    states: torch.Tensor
    marks: torch.Tensor
    surprise: torch.Tensor | None
    layers: int
    vocabulary: int
    meaning: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMethod(Method, ABC):
    """A way to give a model fewer entries than its prompt has tokens.

    Attributes:
        ratio: entries held over tokens, the mean over all layers, in (0, 1].
        layer: the first layer that sees fewer; those before it see, and hold, every token. -1: after an eighth of them.
        sinks: first tokens that stay by themselves.
        recent: last tokens that stay by themselves.

    Class attributes: those of :class:`~tenuto.method.Method`; ``surprised``, whether :attr:`Look.surprise` is needed.

    Raises:
        PolicyError: a number is out of its range.
    """

    ratio: float = 0.5
    layer: int = -1
    sinks: int = 4
    recent: int = 32

    surprised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise PolicyError(f"ratio={self.ratio} is not allowed: give more than 0 and at most 1.")
        if min(self.layer + 1, self.sinks, self.recent) < 0:
            raise PolicyError(f"{self} is not allowed: layer is -1 or more, sinks and recent 0 or more.")

    @abstractmethod
    def choose(self, look: Look) -> Spans:
        """The spans of one prompt: :meth:`count` of them."""

    def best(self, look: Look, scores: torch.Tensor) -> Spans:
        """The tokens at both ends, and of the others those of the highest score ``[tokens]``, in the order of the
        text: :meth:`count` of them, each by itself."""
        stay = scores.cpu().masked_fill(self.ends(scores.shape[0]), float("inf"))
        return Spans.of_tokens(stay.topk(self.count(scores.shape[0], look.layers)).indices.sort().values)

    def count(self, tokens: int, layers: int) -> int:
        """How many spans a prompt gets, so that layers of all tokens and layers of spans hold ``ratio`` together.

        Raises:
            PolicyError: the first layers alone hold more.
        """
        first = self.first(layers)
        if first >= layers or (self.ratio < 1 and self.ratio * layers <= first):
            raise PolicyError(
                f"layer={first} of {layers} is too late for ratio={self.ratio}: the layers before it hold every "
                f"token. Give a layer below {self.ratio * layers:g}, or a larger ratio."
            )
        share = (self.ratio * layers - first) / (layers - first)
        return min(max(round(tokens * share), 1), tokens)

    @property
    def encoded(self) -> bool:
        """Whether :attr:`Look.meaning` is needed."""
        return False

    def first(self, layers: int) -> int:
        """The first layer that sees fewer, of so many."""
        return round(layers / 8) if self.layer == -1 else self.layer

    def kept(self, tokens: int, count: int) -> tuple[int, int]:
        """First and last tokens that stay, fewer where ``count`` spans leave no room for others."""
        if count == tokens:
            return tokens, 0
        first = min(self.sinks, max(count - 1, 0))
        return first, min(self.recent, count - 1 - first)

    def ends(self, tokens: int) -> torch.Tensor:
        """Whether each token is among the first or last that stay, ``[tokens]`` bool."""
        at = torch.arange(tokens)
        return (at < self.sinks) | (at >= tokens - self.recent)
