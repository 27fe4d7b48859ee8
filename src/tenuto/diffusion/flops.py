"""Operations counted from executed calls: measured once per input shape, then added up per call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["FlopMeter"]


def _cpu_attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


class FlopMeter:
    """Counts a denoiser's operations, in all and per block, the first time a shape is seen.

    The first call of a shape is always a computed one (a new shape starts cold), so every block runs in it.
    """

    def __init__(self) -> None:
        self._whole: dict[Any, float] = {}
        self._blocks: dict[Any, dict[int, float]] = {}
        self._beside: dict[Any, float] = {}
        self._parts: dict[Any, float] = {}
        self._mode: FlopCounterMode | None = None
        self._signature: Any = None
        self._skipped: list[int] = []
        self._partly = 0.0

    @contextmanager
    def call(self, signature: Any) -> Iterator[None]:
        """Around one denoiser call."""
        self._signature, self._skipped, self._partly = signature, [], 0.0
        if signature in self._whole:
            yield
            return
        self._blocks[signature], self._beside[signature] = {}, 0.0
        try:  # eager: compiled code hides its operations, and torch would not run it compiled again after this mode
            with (
                torch.compiler.set_stance("force_eager"),
                FlopCounterMode(display=False, custom_mapping=_ATTENTION) as self._mode,
            ):
                yield
                self._whole[signature] = self._mode.get_total_flops() - self._beside[signature]
        finally:
            self._mode = None

    def run(self, index: int, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one block, counting it if this shape is new."""
        if self._mode is None:
            return block(*args, **kwargs)
        before = self._mode.get_total_flops()
        result = block(*args, **kwargs)
        self._blocks[self._signature][index] = self._mode.get_total_flops() - before
        return result

    def beside(self, work: Callable[[], Any]) -> Any:
        """Do a policy's own work: executed in every call, but not by the denoiser."""
        if self._mode is None:
            return work()
        before = self._mode.get_total_flops()
        result = work()
        self._beside[self._signature] += self._mode.get_total_flops() - before
        return result

    def skip(self, index: int) -> None:
        """A block was not run in this call."""
        self._skipped.append(index)

    def part(self, index: int, chosen: int, block: Callable[[], Any], *, besides: bool) -> Any:
        """Run one block for ``chosen`` of its tokens, counting it if this is new; ``besides``: it was run as a whole
        too (shadow mode)."""
        key = (self._signature, index, chosen)
        if not besides:
            self._skipped.append(index)
        if key in self._parts:
            result = block()
        else:
            mode = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
            with torch.compiler.set_stance("force_eager"), mode:
                result = block()
            self._parts[key] = mode.get_total_flops()
        self._partly += self._parts[key]
        return result

    def totals(self) -> tuple[float, float]:
        """Operations of the last call: without caching, and executed."""
        whole = self._whole[self._signature]
        blocks = self._blocks[self._signature]
        skipped = sum(blocks.get(index, 0.0) for index in self._skipped)
        return whole, whole - skipped + self._partly + self._beside[self._signature]
