"""What a cache layer is to transformers and to :mod:`tenuto.kv.attach`, if it computes its own attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from tenuto.errors import AttachError

__all__ = ["EngineLayer"]


class EngineLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer that is handed queries, keys and values together.

    Attributes:
        step: of the call that is under way; None outside an attached model.
        twins: layers for its second attention of a call, and further ones, where a model attends several times.
    """

    is_sliding = False
    is_croppable = True
    step: Any = None
    twins: Sequence[EngineLayer] = ()

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is made before the first attention."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hand the new keys and values on to :meth:`attend`, which holds them.

        Raises:
            AttachError: the model that calls is not attached.
        """
        if self.step is None:
            raise AttachError("This cache belongs to an attached model. Use it inside the `with` block that made it.")
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask over all tokens so far."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    @abstractmethod
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, softcap: float | None
    ) -> torch.Tensor:
        """Hold the new tokens and attend to them and to those before.

        ``query [batch, heads, new, head_dim]``, ``key`` and ``value [batch, kv_heads, new, head_dim]``; gives
        ``[batch, new, heads, head_dim]``.
        """
