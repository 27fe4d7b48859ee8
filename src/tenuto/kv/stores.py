"""What this family asks of the one above it, :mod:`tenuto.reuse`: a store of prompts, and a way to join chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tenuto.kv.policy import KVPolicy

if TYPE_CHECKING:
    from tenuto.kv.cache import KVCache
    from tenuto.kv.models import Layout

__all__ = ["Joiner", "PromptStore", "StoredPrefixes"]


class StoredPrefixes(Protocol):
    """A store of prompts, for one attached model.

    Attributes:
        restored: tokens loaded so far, all rows together.
    """

    restored: int

    def restore(
        self, cache: KVCache, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None
    ) -> int:
        """Fill an empty cache with the longest stored prefix of ``ids [batch, columns]``; how many columns that is."""

    def look(self, cache: KVCache, new: int, mask: torch.Tensor | None, positions: torch.Tensor | None) -> None:
        """A forward call of ``new`` tokens per row is about to be made: whether its entries may be kept later."""

    def keep(self, cache: KVCache) -> None:
        """Take what is not stored yet of a cache that is about to be compressed."""

    def stored(self, ids: torch.Tensor) -> int:
        """How many tokens of a prompt ``[1, tokens]`` are stored, from the first on."""

    def size(self, ids: torch.Tensor) -> tuple[int, int]:
        """Bytes of a prompt's pages ``[1, tokens]``, and how many of its tokens can be loaded."""


class PromptStore(Protocol):
    """A store of prompts that several models may share."""

    def of(self, model: Any, layout: Layout, policy: KVPolicy) -> StoredPrefixes:
        """The store as one attached model sees it.

        Raises:
            AttachError: no prefix of this model, or under this policy, can be stored.
        """

    def flush(self) -> None:
        """Wait until all that was given is written."""


class Joiner(Protocol):
    """A way to join the caches of chunks."""

    def join(self, cache: KVCache, chunks: Sequence[torch.Tensor], store: Any = None) -> None:
        """Fill an empty cache with chunks of token ids ``[1, tokens]`` each, in the order given."""
