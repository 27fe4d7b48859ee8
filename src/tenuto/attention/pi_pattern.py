"""Which keys a query of PiAttention sees: one definition, on numbers of tokens, from which every backend is derived.

A head has a stride and a phase. Query ``q`` sees two disjoint sets:

- near: the last ``window`` tokens, ``0 <= q - k < window``, and the first ``sinks`` tokens of the row;
- skip: of the tokens that are not near, those at a distance of ``phase + m stride``, for ``m`` = 1 (``single``),
  1, 2, 3, ... (``multiples``) or 1, 2, 4, 8, ... (``log``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import gcd
from typing import Any

import torch

__all__ = ["VARIANTS", "Pattern", "coprime_strides"]

VARIANTS = ("single", "multiples", "log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """The pattern of one layer.

    Attributes:
        window, sinks: tokens; strides, phases: tokens, one per query head; variant: of :data:`VARIANTS`; last: with
            ``multiples``, how many of those beyond the window are seen, the nearest; 0 for all.
    """

    window: int
    sinks: int
    strides: tuple[int, ...]
    phases: tuple[int, ...]
    variant: str
    last: int = 0

    def near(self, q: Any, k: Any) -> Any:
        """Whether ``k`` is near ``q``: on numbers, or tensors of them."""
        return (k >= 0) & (k <= q) & ((q - k < self.window) | (k < self.sinks))

    def skip(self, stride: Any, phase: Any, q: Any, k: Any) -> Any:
        """Whether ``k`` is in the skip set of ``q``, for a head of this stride and phase."""
        far = q - k - phase
        seen = (q - k >= self.window) & (k >= self.sinks) & (far > 0)
        if self.variant == "single":
            return seen & (far == stride)
        seen = seen & (far % stride == 0)
        if self.variant == "log":
            return seen & (far // stride & (far // stride - 1) == 0)
        return seen & (far < self._first(stride, phase) * stride + self.last * stride) if self.last else seen

    def _first(self, stride: Any, phase: Any) -> Any:
        """The first multiple beyond the window."""
        within = (self.window - phase - 1) // stride
        return within * (within > 0) + 1

    def mask_fn(self, device: torch.device | str = "cpu") -> Callable[[Any, Any, Any, Any], Any]:
        """``(b, h, q, k) -> bool``: whether query ``q`` of head ``h`` sees key ``k``; all int64 tensors."""
        strides = torch.tensor(self.strides, device=device)
        phases = torch.tensor(self.phases, device=device)

        def seen(b: Any, h: Any, q: Any, k: Any) -> Any:
            return self.near(q, k) | self.skip(strides[h], phases[h], q, k)

        return seen

    def offsets(self, head: int, length: int) -> list[int]:
        """The distances below ``length`` in the skip set of a head, nearest first."""
        stride, phase = self.strides[head], self.phases[head]
        if self.variant == "multiples":
            first = self._first(stride, phase)
            stop = first + self.last if self.last else length // stride + 2
            found = [phase + m * stride for m in range(first, stop)]
        elif self.variant == "single":
            found = [phase + stride]
        else:
            found = [phase + (stride << level) for level in range(max(length, 1).bit_length())]
        return [offset for offset in found if self.window <= offset < length]

    @property
    def reach(self) -> int | None:
        """The largest distance seen, sinks apart; None when it grows with the text."""
        if self.variant == "log" or (self.variant == "multiples" and not self.last):
            return None
        skips = [
            phase + stride * (1 if self.variant == "single" else self._first(stride, phase) + self.last - 1)
            for stride, phase in zip(self.strides, self.phases, strict=True)
        ]
        return max(self.window - 1, *skips)

    @property
    def shared(self) -> bool:
        """Whether all heads see the same tokens."""
        return len(set(zip(self.strides, self.phases, strict=True))) == 1

    def groups(self) -> dict[tuple[int, int], list[int]]:
        """The heads of each stride and phase."""
        found: dict[tuple[int, int], list[int]] = {}
        for head, key in enumerate(zip(self.strides, self.phases, strict=True)):
            found.setdefault(key, []).append(head)
        return found


def coprime_strides(near: int, heads: int, layer: int, least: int = 2) -> tuple[int, ...]:
    """One stride per head, near ``near``, pairwise co-prime within a layer and with the layers before and after it.

    Twice as many numbers as heads are chosen, nearest first. Even layers take every other one, odd layers the rest,
    and the heads change places every second layer: so strides stay near the one asked for, whatever the layers.
    """
    chosen: list[int] = []
    for step in count():
        for candidate in dict.fromkeys((near - step, near + step)):
            if candidate >= max(least, 2) and all(gcd(candidate, other) == 1 for other in chosen):
                chosen.append(candidate)
        if len(chosen) >= 2 * heads:
            break
    mine = chosen[layer % 2 : 2 * heads : 2]
    turn = layer // 2 % heads
    return tuple(mine[turn:] + mine[:turn])
