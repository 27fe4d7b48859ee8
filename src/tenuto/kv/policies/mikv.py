"""MiKV: no token is left behind: important entries keep many bits, the others are kept too, in few.

Importance is the attention received so far, as in H2O; what H2O would evict stays in a low precision. Every token of a
head has one scale. A few key channels are large, and their queries are large elsewhere: before rounding, key channels
are multiplied by ``b = sqrt(max|q| / max|k|)``, which is undone when they are read.

What it does not do: an entry stays in the class in which it was encoded, so none is rounded twice. Of a budget below
all tokens, the least important entries are still evicted. The balancer needs queries: unless decoding compresses too,
decoded entries stay whole until the next prefill. Attention decodes what it reads.

Source: Yang et al. 2024, No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision
Quantization, section 3, https://arxiv.org/abs/2402.18096
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.h2o import ReceivedAttention
from tenuto.kv.policies.kivi import pack, rounded, unpack
from tenuto.kv.policy import ALL, Code, Codec, KVMethod, KVPolicy, Paper, Scored, Selector, TopK

__all__ = ["Balanced", "MiKV", "Mixed", "Split", "TwoLevels"]

Split = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""One class rounded: codes of keys and values ``[n, head_dim]`` uint8, scales per entry ``[n, scales]``, and scales per
channel ``[scales, head_dim]``."""


@dataclass(frozen=True, slots=True)
class TwoLevels(Selector):
    """The best ``share`` of what a head keeps in the first class, rounded up, the rest in the second."""

    share: float
    sinks: int = 0
    window: int = 0
    classes: ClassVar[int] = 2

    def select(self, scored: Scored, counts: torch.Tensor) -> torch.Tensor:
        best = TopK().select(scored, (counts * self.share).ceil().long())
        return 2 * TopK().select(scored, counts) - best


class Mixed(Codec):
    """Entries of the first class in ``high`` bits, of the second in ``low``; without classes, all in ``high``.

    A code holds ``low [entries]`` uint8, the class; ``high_keys``, ``high_values``, ``low_keys``, ``low_values``, the
    packed codes of each class ``[n, head_dim * bits / 8]``; ``scales [entries, n]``; ``channels [groups, n, head_dim]``
    and ``group [entries]`` int32: entries of one class that were encoded together are a group.
    """

    __slots__ = ()
    high: int
    low: int
    scales: ClassVar[int]
    channels: ClassVar[int]
    shared: ClassVar[str] = "channels"

    @abstractmethod
    def split(self, keys: torch.Tensor, values: torch.Tensor, bits: int, others: tuple[torch.Tensor, ...]) -> Split:
        """Round the entries of one class; ``others``: the keys of both classes, and the queries if it wants some."""

    @abstractmethod
    def keys_of(self, codes: torch.Tensor, scales: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """Keys of codes ``[n, head_dim]``, scales ``[n, scales]`` and channels ``[n, scales, head_dim]``, float32."""

    @abstractmethod
    def values_of(self, codes: torch.Tensor, scales: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """Values, as :meth:`keys_of`."""

    def check(self, head_dim: int) -> None:
        if head_dim % 8:
            raise PolicyError(f"Codes of {self.high} and {self.low} bits need a head size divisible by 8: {head_dim}.")

    def entry_bytes(self, head_dim: int, itemsize: int) -> float:
        return 2 * head_dim * self.high / 8 + 5 + self.scales * itemsize

    def page_bytes(self, head_dim: int, itemsize: int) -> float:
        return 2 * self.channels * head_dim * itemsize  # both classes

    def encode(
        self, keys: torch.Tensor, values: torch.Tensor, *, classes: torch.Tensor | None, queries: torch.Tensor | None
    ) -> Code:
        low = torch.zeros_like(keys[:, 0], dtype=torch.uint8) if classes is None else (classes > 1).to(torch.uint8)
        others = (keys,) if queries is None else (keys, queries)
        code = {"low": low, "group": torch.zeros_like(low, dtype=torch.int32)}
        scales = keys.new_zeros(len(keys), self.scales)
        channels: list[torch.Tensor] = []
        for number, (name, bits) in enumerate((("high", self.high), ("low", self.low))):
            at = low == number
            packed = keys.new_zeros(0, keys.shape[1] * bits // 8, dtype=torch.uint8)
            code |= {f"{name}_keys": packed, f"{name}_values": packed.clone()}
            if not bool(at.any()):
                continue
            key_codes, value_codes, scales[at], found = self.split(keys[at], values[at], bits, others)
            code |= {f"{name}_keys": pack(key_codes, bits), f"{name}_values": pack(value_codes, bits)}
            code["group"][at] = len(channels)
            channels.append(found)
        return code | {"scales": scales, "channels": torch.stack(channels)}

    def _codes(self, code: Code, name: str, start: int, stop: int) -> torch.Tensor:
        low = code["low"][start:stop].bool()
        first = int(code["low"][:start].sum())
        last = first + int(low.sum())
        high = unpack(code[f"high_{name}"][start - first : stop - last], self.high)
        both = torch.cat([high, unpack(code[f"low_{name}"][first:last], self.low)])
        return both.index_select(0, torch.where(low, low.cumsum(0) + len(high), (~low).cumsum(0)) - 1)

    def _channels(self, code: Code, start: int, stop: int) -> torch.Tensor:
        return code["channels"].float().index_select(0, code["group"][start:stop])

    def keys(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        codes, channels = self._codes(code, "keys", start, stop), self._channels(code, start, stop)
        return self.keys_of(codes, code["scales"][start:stop], channels).to(dtype)

    def values(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        codes, channels = self._codes(code, "values", start, stop), self._channels(code, start, stop)
        return self.values_of(codes, code["scales"][start:stop], channels).to(dtype)

    def take(self, code: Code, index: torch.Tensor) -> Code:
        groups, group = code["group"][index].unique(return_inverse=True)
        taken = {"low": code["low"][index], "scales": code["scales"][index]}
        taken |= {"group": group.to(torch.int32), "channels": code["channels"][groups]}
        for number, name in enumerate(("high", "low")):
            mine = code["low"] == number
            rows = (mine.cumsum(0) - 1)[index[mine[index]]]
            taken |= {kind: code[kind][rows] for kind in (f"{name}_keys", f"{name}_values")}
        return taken

    def join(self, first: Code, second: Code) -> Code:
        moved = second | {"group": second["group"] + len(first["channels"])}
        return {name: torch.cat([part, moved[name]]) for name, part in first.items()}


@dataclass(frozen=True, slots=True)
class Balanced(Mixed):
    """One scale per token, for keys and for values; key channels balanced by ``sqrt(max|q| / max|k|)`` over the queries
    and keys encoded together."""

    high: int = 8
    low: int = 2
    page: int = 32
    residual: int = 32
    probes: int = ALL
    scales: ClassVar[int] = 4
    channels: ClassVar[int] = 1

    def split(self, keys: torch.Tensor, values: torch.Tensor, bits: int, others: tuple[torch.Tensor, ...]) -> Split:
        every, queries = others[0].float(), others[-1].float()
        balance = queries.abs().amax((0, 1)) / every.abs().amax(0)
        undo = torch.where(torch.isfinite(balance) & (balance > 0), balance, 1.0).rsqrt().to(keys.dtype)
        key_codes, key_low, key_step = rounded(keys / undo, -1, bits)
        value_codes, value_low, value_step = rounded(values, -1, bits)
        return key_codes, value_codes, torch.cat([key_low, key_step, value_low, value_step], -1), undo[None]

    def keys_of(self, codes: torch.Tensor, scales: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        low, step = scales[:, :1].float(), scales[:, 1:2].float()
        return (low + codes * step) * channels[:, 0]

    def values_of(self, codes: torch.Tensor, scales: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        low, step = scales[:, 2:3].float(), scales[:, 3:].float()
        return low + codes * step


@dataclass(frozen=True, slots=True, kw_only=True)
class MiKV(KVMethod):
    """Important entries in many bits, the others in few.

    Attributes:
        important: part of the entries that are important, from 0 to 1.
        high: bits of important entries: 2, 3, 4 or 8.
        low: bits of the others: 2, 3, 4 or 8.
        residual: recent entries that are always whole.
        page: entries encoded at a time.
    """

    important: float = 0.2
    high: int = 8
    low: int = 2
    residual: int = 32
    page: int = 32

    paper: ClassVar[Paper] = Paper(
        "No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization",
        "Yang, Kim, Bae, Kwon, Park, Yang, Kwon, Lee",
        2024,
        "https://arxiv.org/abs/2402.18096",
    )
    sweep: ClassVar[tuple[str, ...]] = ("mikv:important=0.5,low=4", "mikv:low=3", "mikv", "mikv:residual=0,page=16")

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1 or not {self.high, self.low} <= {2, 3, 4, 8} or self.low > self.high:
            raise PolicyError(
                f"mikv: important={self.important}, high={self.high}, low={self.low}. important must be from 0 to 1, "
                "high and low 2, 3, 4 or 8, low not above high."
            )
        if self.residual < 0 or self.page < 1:
            raise PolicyError(
                f"mikv: residual={self.residual}, page={self.page}. residual must be zero or more, page at least 1."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(
            scorer=ReceivedAttention(),
            selector=TwoLevels(self.important),
            codec=Balanced(self.high, self.low, self.page, self.residual),
        )
