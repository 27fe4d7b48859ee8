"""Operations counted from executed calls: measured once per input shape, then added up per call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["FlopCount", "FlopMeter"]


def _cpu_attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}
_counting = threading.RLock()  # torch.compiler's stance is one for the whole process


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_ATTENTION)


class FlopMeter:
    """Counts a denoiser's operations, in all and per block, the first time a shape is seen.

    The first call of a shape is always a computed one (a new shape starts cold), so every block runs in it.
    """

    def __init__(self) -> None:
        self.whole: dict[Any, float] = {}
        self.blocks: dict[Any, dict[int, float]] = {}
        self.beside: dict[Any, float] = {}
        self.parts: dict[Any, float] = {}

    @contextmanager
    def call(self, signature: Any) -> Iterator[FlopCount]:
        """Around one denoiser call."""
        if signature in self.whole:
            yield FlopCount(self, signature, None)
            return
        with _counting:  # eager: compiled code hides its operations, and torch would not run it compiled again after
            self.blocks[signature], self.beside[signature] = {}, 0.0
            with torch.compiler.set_stance("force_eager"), _counter() as mode:
                yield FlopCount(self, signature, mode)
                self.whole[signature] = mode.get_total_flops() - self.beside[signature]


class FlopCount:
    """What one call of the denoiser executes.

    Args:
        mode: counts, if the call's shape is new.
    """

    def __init__(self, meter: FlopMeter, signature: Any, mode: FlopCounterMode | None) -> None:
        self._meter, self._signature, self._mode = meter, signature, mode
        self._skipped: list[int] = []
        self._partly = 0.0

    def run(self, index: int, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one block, counting it if this shape is new."""
        if self._mode is None:
            return block(*args, **kwargs)
        before = self._mode.get_total_flops()
        result = block(*args, **kwargs)
        self._meter.blocks[self._signature][index] = self._mode.get_total_flops() - before
        return result

    def beside(self, work: Callable[[], Any]) -> Any:
        """Do a policy's own work: executed in every call, but not by the denoiser."""
        if self._mode is None:
            return work()
        before = self._mode.get_total_flops()
        result = work()
        self._meter.beside[self._signature] += self._mode.get_total_flops() - before
        return result

    def skip(self, index: int) -> None:
        """A block was not run in this call."""
        self._skipped.append(index)

    def part(self, index: int, chosen: int, block: Callable[[], Any], *, besides: bool) -> Any:
        """Run one block for ``chosen`` of its tokens, counting it if this is new; ``besides``: it was run as a whole
        too (shadow mode)."""
        key, parts = (self._signature, index, chosen), self._meter.parts
        if not besides:
            self._skipped.append(index)
        if key in parts:
            result = block()
        else:
            with _counting, torch.compiler.set_stance("force_eager"), (mode := _counter()):
                result = block()
            parts[key] = mode.get_total_flops()
        self._partly += parts[key]
        return result

    def totals(self) -> tuple[float, float]:
        """Operations of the call: without caching, and executed."""
        whole, blocks = self._meter.whole[self._signature], self._meter.blocks[self._signature]
        skipped = sum(blocks.get(index, 0.0) for index in self._skipped)
        return whole, whole - skipped + self._partly + self._meter.beside[self._signature]
