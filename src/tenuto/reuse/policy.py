"""The contract of an assembler: how the caches of chunks, each computed by itself, become the cache of their sequence.

A chunk computed by itself stands at positions 0, 1, ... and has seen nothing of the chunks before it. Turning its keys
mends the positions (exactly, rotary embeddings being relative); what its tokens should have seen is mended by running
some of them again. The first chunk needs neither: its cache is exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.method import Method
from tenuto.paper import Claim, Paper

if TYPE_CHECKING:
    from tenuto.kv.cache import KVCache
    from tenuto.reuse.chunks import ChunkStore

__all__ = ["Assembler", "Claim", "Layers", "Paper", "Seen", "check_fraction", "check_layer"]

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer, keys after RoPE and values, ``[kv_heads, tokens, head_dim]`` each."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What one layer has computed, before its attention.

    Attributes:
        layer: its number; scaling: what logits are multiplied with.
        starts: number of the first token of each chunk.
        at: numbers of the tokens that run, sorted ``[tokens]``.
        queries: ``[heads, tokens, head_dim]``; keys, values: ``[kv_heads, tokens, head_dim]``.
        old_keys, old_values: what stood in their place, of the same shapes.
        all_keys: of the whole sequence, the new ones in place ``[kv_heads, all, head_dim]``.
    """

    layer: int
    scaling: float
    starts: tuple[int, ...]
    at: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    old_keys: torch.Tensor
    old_values: torch.Tensor
    all_keys: torch.Tensor

    @property
    def chunk(self) -> torch.Tensor:
        """The number of the chunk each running token is in ``[tokens]``."""
        starts = torch.tensor(self.starts, device=self.at.device)
        return torch.searchsorted(starts, self.at, right=True) - 1


class Assembler(Method, ABC):
    """A way to join chunks: a frozen, keyword-only dataclass of numbers.

    Class attributes: those of :class:`~tenuto.method.Method`; ``reads``, whether the caches of the chunks are used at
    all; ``turns``, whether their keys are turned to their place; ``computes``, whether tokens are run again.
    """

    __slots__ = ()
    reads: ClassVar[bool] = True
    computes: ClassVar[bool] = True

    @property
    def turns(self) -> bool:
        """Whether keys are turned to their place."""
        return self.reads

    def join(self, cache: KVCache, chunks: Sequence[torch.Tensor], store: ChunkStore | None = None) -> None:
        """Fill an empty cache with chunks of token ids ``[1, tokens]`` each, see :func:`tenuto.reuse.join.join`."""
        from tenuto.reuse.join import join

        join(cache, chunks, self, store)

    @abstractmethod
    def choose(self, seen: Seen) -> torch.Tensor | None:
        """Which tokens go on to the next layer, asked in every layer.

        All tokens behind the first chunk run in the first layer (all tokens at all if ``reads`` is False). Those that
        do not go on keep their reused keys and values in the layers that follow.

        Returns:
            sorted indices into ``seen.at``, or None: all go on.
        """


def check_fraction(name: str, given: float) -> None:
    """Refuse what is no fraction.

    Raises:
        PolicyError: it is not in [0, 1].
    """
    if not 0 <= given <= 1:
        raise PolicyError(f"{name}={given} is not allowed: give a fraction of the tokens from 0 to 1.")


def check_layer(given: int) -> None:
    """Refuse what is no layer.

    Raises:
        PolicyError: it is negative.
    """
    if given < 0:
        raise PolicyError(f"check={given} is not allowed: give the number of a layer, from 0.")
