"""A transformers cache layer that holds a :class:`~tenuto.attention.policy.State`."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from tenuto.attention.policy import Heads, State
from tenuto.errors import AttachError, InputError

__all__ = ["StateLayer", "held", "state_in"]


class StateLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a cache, as ``generate`` sees it: beams, batches, reset; ``crop`` where it is possible."""

    is_sliding = False

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self._heads = heads
        self.state = heads.state()
        self.is_croppable = self.state.croppable
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: a state is made with the layer."""

    def update(self, *given: Any) -> Any:
        """Refuse: only the attention it was made for can use it."""
        raise AttachError("This cache belongs to a retrofitted model. Use a new cache with another model.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All columns: the padding mask of the whole sequence is asked for."""
        return self.state.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Columns seen."""
        return self.state.seen

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def __deepcopy__(self, memo: dict[int, Any]) -> StateLayer:
        """A copy of what is held, for the same model: several questions on one prompt."""
        other = StateLayer(self._heads)
        other.state = self.state.copied()
        return other

    def reset(self) -> None:
        """Begin again."""
        self.state = self._heads.state()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in another order, as beam search asks."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row ``repeats`` times."""
        if self.state.count is not None:
            rows = torch.arange(len(self.state.count), device=self.state.count.device)
            self.state.select(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only these rows."""
        if self.state.count is not None:
            self.state.select(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, given as a negative number.

        Raises:
            AttachError: this attention cannot.
            InputError: a positive number.
        """
        if tokens_to_remove > 0:
            raise InputError(f"crop({tokens_to_remove}) was asked for. Give minus the number of tokens to remove.")
        self.state.crop(-tokens_to_remove)


def state_in(cache: Cache, number: int, heads: Heads) -> State:
    """The state of layer ``number`` in a cache; a plain layer that is still empty is replaced.

    Raises:
        AttachError: a cache of another kind, or one that another model has filled.
    """
    while len(cache.layers) <= number:
        cache.layers.append(StateLayer(heads))
    layer = cache.layers[number]
    if isinstance(layer, StateLayer):
        if layer._heads is not heads and layer.state.seen:
            raise AttachError("This cache was filled by another model or layer. Give each model a cache of its own.")
        if layer._heads is not heads:
            cache.layers[number] = layer = StateLayer(heads)
        return layer.state
    if not isinstance(layer, DynamicLayer) or cache.offloading or layer.get_seq_length():
        raise AttachError(
            f"A {type(cache).__name__} with layers of {type(layer).__name__} was given"
            f"{' that holds tokens already' if layer.get_seq_length() else ''}. Give an empty DynamicCache, or none."
        )
    cache.layers[number] = made = StateLayer(heads)
    return made.state


def held(cache: Cache) -> dict[str, int]:
    """Bytes of keys, values and what was made of them in a cache, by tier, counted from the tensors held.

    Works for transformers' own caches as well, which are on one tier, ``device``.
    """
    total = {"device": 0}
    for layer in cache.layers:
        if isinstance(layer, StateLayer):
            for tier, size in layer.state.held().items():
                total[tier] = total.get(tier, 0) + size
        else:
            tensors = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
            total["device"] += sum(value.nbytes for value in tensors)
    return total
