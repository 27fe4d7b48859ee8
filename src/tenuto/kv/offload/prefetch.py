"""Pages fetched before their layer asks: predicted from an earlier layer's input, beside what was read last.

What a decoding step will read is known only from its queries, which do not exist yet when the fetch must start. The
queries of a layer some layers later are predicted (:mod:`tenuto.kv.offload.predict`), the index chooses from the
summaries as it will, and what is not in memory is fetched. What the step before read is in the hot set already, so the
two are a union. Predicting the next *token* would help nothing: the step reads the same pages whatever the token is,
and that token's own keys and values do not exist before it is computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tenuto.kv.layer import KVLayer
from tenuto.kv.models import Layout
from tenuto.kv.offload.paged import Paged
from tenuto.kv.offload.pool import SMOOTHING, Pool
from tenuto.kv.offload.predict import QueryOf, predictors
from tenuto.kv.offload.settings import Prefetch
from tenuto.kv.rope import Rope
from tenuto.restoring import hook_until

if TYPE_CHECKING:
    from tenuto.kv.cache import KVCache

__all__ = ["Prefetcher", "watch"]


class Prefetcher:
    """Of one attached model. Layers without a predictor (None) are fetched when they ask.

    Attributes:
        layer_time: seconds from one layer to the next, waiting for pages left out; a running mean.
    """

    def __init__(self, settings: Prefetch, predictors: Sequence[QueryOf | None]) -> None:
        self.settings, self.predictors = settings, predictors
        self.layer_time = 0.0
        self._reached = 0
        self._last: tuple[float, float] | None = None

    def ahead(self, latency: float) -> int:
        """Layers between the input that predicts and the layer that reads; ``latency`` of a fetch, in seconds."""
        if self.settings.ahead or not self.layer_time:
            return self.settings.ahead or 1
        return max(min(math.ceil(latency / self.layer_time), len(self.predictors) - 1), 1)

    def foresee(
        self, pool: Pool, number: int, hidden: torch.Tensor, positions: torch.Tensor, layers: Sequence[object]
    ) -> None:
        """Layer ``number`` of a decoding step is about to begin: fetch for the layers so far ahead, each once a step.

        Args:
            hidden: its input ``[batch, width]``; positions: RoPE positions ``[batch]``.
            layers: the cache's.
        """
        self._note(number, pool.books.stall_s)
        first = number + 1 if number == 0 else self._reached + 1
        self._reached = last = min(
            max(number + self.ahead(pool.latency), self._reached if number else 0), len(layers) - 1
        )
        for target in range(first, last + 1):
            layer, predictor = layers[target], self.predictors[target]
            if isinstance(layer, KVLayer) and predictor is not None and layer.paged is not None and layer.paged.used:
                raw = predictor(hidden)
                self._fetch(layer.paged, raw, positions, predictor.rope, layer.site.scaling)

    def _fetch(self, paged: Paged, raw: torch.Tensor, positions: torch.Tensor, rope: Rope, scaling: float) -> None:
        corrected = torch.stack([row.guess.correct(mine) for row, mine in zip(paged.rows, raw, strict=True)])
        queries = rope.rotate(corrected, positions[:, None].expand(raw.shape[:2]))
        for row, query in zip(paged.rows, queries, strict=True):
            if row.pages and (row.asked is None or row.index.boundary(row.asked, query)):
                wanted = row.best(query, scaling, round(self.settings.margin * row.index.pages))
                row.expect(paged.pool, wanted, query.device)

    def _note(self, number: int, stalled: float) -> None:
        """Measure the time of a layer; ``stalled`` seconds went by waiting so far."""
        now = time.perf_counter()
        if number and self._last is not None:
            took = now - self._last[0] - (stalled - self._last[1])
            self.layer_time += (took - self.layer_time) * (SMOOTHING if self.layer_time else 1.0)
        self._last = (now, stalled)


def watch(stack: ExitStack, layout: Layout, settings: Prefetch, current: Callable[[], KVCache | None]) -> None:
    """Show every decoder layer's input to a prefetcher, until ``stack`` is closed; ``current`` is the cache in use."""
    blocks = layout.blocks
    ropes = [spec.site.rope if spec.site else None for spec in layout.layers]
    prefetcher = Prefetcher(settings, predictors(blocks, ropes))

    def before(number: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = current()
        step = None if cache is None else cache.engine[0].step
        if cache is not None and cache.pool is not None and step is not None and step.sparse:
            hidden = args[0] if args else kwargs["hidden_states"]
            prefetcher.foresee(cache.pool, number, hidden[:, -1], cache.sequences.positions[:, -1], cache.layers)

    for number, block in enumerate(blocks):
        hook_until(stack, block, partial(before, number))
