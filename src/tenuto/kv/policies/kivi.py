"""KIVI: old keys and values in 2, 3 or 4 bits, keys quantised per channel and values per token; recent ones stay whole.

Keys have a few channels of large size, values have not: a key channel shares one scale over ``group`` tokens, and
``group`` channels of a value share one scale. The codes of a token are packed into bytes, channel by channel, so that
evicting a token moves codes and never decodes and rounds again. Attention multiplies with codes.

What it does not do: it evicts nothing (``snapkv+kivi`` does both), and its scales are in the model's own dtype.
``residual`` entries are always whole, and up to ``group`` more until a page is full.

Source: Liu et al. 2024, KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, https://arxiv.org/abs/2402.02750
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Claim, Code, Codec, KVMethod, KVPolicy, Paper

__all__ = ["Groups", "Kivi", "pack", "rounded", "spread", "unpack"]

FEW = 32
"""Queries up to which it is cheaper not to decode; beyond, decoded entries serve them all."""


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes ``[..., n]`` uint8 below ``2 ** bits`` as bytes ``[..., n * bits / 8]``; neighbours share a byte, the first
    of them in its lowest bits. Three bits are two and one, packed one after the other."""
    if bits == 3:
        return torch.cat([pack(codes & 3, 2), pack(codes >> 2, 1)], -1)
    parts = codes.unflatten(-1, (-1, 8 // bits)).unbind(-1)
    packed: torch.Tensor = parts[0].clone(memory_format=torch.contiguous_format)
    for number, part in enumerate(parts[1:], 1):
        packed |= part << (number * bits)
    return packed


def spread(packed: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes ``[..., n]`` uint8, each still at its place in its byte, and what undoes that: a power of two per
    channel, ``[n]`` float32. Every byte is copied as often as it holds codes, and masked, all in one wide integer."""
    if bits == 3:
        codes = unpack(packed, 3)
        return codes, torch.ones(codes.shape[-1], device=codes.device)
    many = 8 // bits
    wide = packed.to({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[many])
    if many > 1:
        mask = bytes((2**bits - 1) << (number * bits) for number in range(many))
        wide *= int.from_bytes(b"\1" * many, sys.byteorder)
        wide &= int.from_bytes(mask, sys.byteorder, signed=True)
    return wide.view(torch.uint8), places(bits, packed.shape[-1], packed.device)


@cache
def places(bits: int, count: int, device: torch.device) -> torch.Tensor:
    """What a code is multiplied with to take it down from its place, for all channels in ``count`` bytes."""
    with torch.inference_mode(False):
        return torch.tensor([0.5**place for place in range(0, 8, bits)] * count, device=device)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes that :func:`pack` packed, ``[..., n]`` uint8."""
    if bits == 3:
        two, one = packed.split([packed.shape[-1] // 3 * 2, packed.shape[-1] // 3], -1)
        return unpack(two, 2) | unpack(one, 1) << 2
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: torch.Tensor = spread(packed, bits)[0] >> places.repeat(packed.shape[-1])
    return codes


def rounded(x: torch.Tensor, axis: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8, smallest value and step of each group, which is all of ``axis``: ``x ~ low + code * step``."""
    low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    step = (high - low) / (2**bits - 1)
    safe = torch.where(step > 0, step, torch.ones_like(step)).float()
    codes = ((x.float() - low.float()) / safe).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), low, step


@dataclass(frozen=True, slots=True)
class Groups(Codec):
    """Codes between the smallest and the largest of a group: ``q = round((x - low) / step)``, ``step = (high - low) /
    (2^bits - 1)``; keys per channel over ``group`` tokens, values per token over ``group`` channels.

    A code holds ``keys`` and ``values``, packed ``[entries, head_dim * bits / 8]``; ``page [entries]`` int32, which
    page of key scales an entry belongs to; low and step as ``key_scales [pages, 2, head_dim]`` and ``value_scales
    [2, head_dim / group, entries]``.
    """

    bits: int = 2
    group: int = 32
    residual: int = 32
    shared: ClassVar[str] = "key_scales"

    @property
    def page(self) -> int:  # type: ignore[override]
        return self.group

    def check(self, head_dim: int) -> None:
        if head_dim % self.group or head_dim * self.bits % 8:
            raise PolicyError(
                f"kivi: group={self.group} does not divide the head size {head_dim} of this model. "
                f"Give a group that does, for example {next(g for g in (32, 16, 8, 4, 2, 1) if head_dim % g == 0)}."
            )

    def entry_bytes(self, head_dim: int, itemsize: int) -> float:
        return 2 * head_dim * self.bits / 8 + 4 + 2 * itemsize * head_dim / self.group

    def page_bytes(self, head_dim: int, itemsize: int) -> float:
        return 2 * itemsize * head_dim

    def encode(
        self, keys: torch.Tensor, values: torch.Tensor, *, classes: torch.Tensor | None, queries: torch.Tensor | None
    ) -> Code:
        key_codes, key_low, key_step = rounded(keys.unflatten(0, (-1, self.group)), 1, self.bits)
        value_codes, value_low, value_step = rounded(values.unflatten(-1, (-1, self.group)), -1, self.bits)
        pages = len(keys) // self.group
        return {
            "keys": pack(key_codes.flatten(0, 1), self.bits),
            "values": pack(value_codes.flatten(-2), self.bits),
            "page": torch.arange(pages, device=keys.device, dtype=torch.int32).repeat_interleave(self.group),
            "key_scales": torch.cat([key_low, key_step], 1),
            "value_scales": torch.stack([value_low[..., 0].T, value_step[..., 0].T]),
        }

    def keys(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        codes, place = spread(code["keys"][start:stop], self.bits)
        page = code["page"][start:stop]
        low, step = (scale.index_select(0, page) for scale in code["key_scales"].float().unbind(1))
        return torch.addcmul(low, codes.float(), step * place).to(dtype)

    def values(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        codes, place = spread(code["values"][start:stop], self.bits)
        low, step = code["value_scales"][:, :, start:stop].float().mT[..., None]
        return torch.addcmul(low, (codes.float() * place).unflatten(-1, (-1, self.group)), step).flatten(-2).to(dtype)

    def logits(self, codes: Sequence[Code], query: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """``q · (low + code * step) = q · low + (q * step) · code``: the step goes into the query, page by page.

        Entries are decoded where eviction has thinned pages out, and for many queries.
        """
        pages, apart = slice(start // self.group, stop // self.group), start % self.group or stop % self.group
        thinned = any(len(code["page"]) < len(code["key_scales"]) * self.group for code in codes)
        if apart or thinned or query.shape[1] > FEW:
            return Codec.logits(self, codes, query, start, stop)
        rows = query.float()
        low, step = torch.stack([code["key_scales"][pages] for code in codes]).float().unbind(2)
        packed, place = spread(torch.stack([code["keys"][start:stop] for code in codes]), self.bits)
        scaled = ((rows * place)[:, None] * step[:, :, None]).flatten(0, 1)
        lows = (low @ rows.mT).flatten(0, 1)[..., None]
        found = torch.baddbmm(lows, scaled, packed.float().view(len(lows), self.group, -1).mT)
        found = found.view(*low.shape[:2], *found.shape[1:]).transpose(1, 2)
        return found.flatten(2).to(query.dtype)

    def mix(self, codes: Sequence[Code], attention: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """``a · (low + code * step) = a · low + (a * step) · code``: the step goes into the attention.

        One product of all groups' steps with all channels, of which each group takes its own.
        """
        rows, groups = attention.float(), codes[0]["value_scales"].shape[1]
        if rows.shape[1] * groups > FEW:
            return Codec.mix(self, codes, attention, start, stop)
        low, step = torch.stack([code["value_scales"][:, :, start:stop] for code in codes], 1).float()
        packed, place = spread(torch.stack([code["values"][start:stop] for code in codes]), self.bits)
        every = (rows[:, None] * step[:, :, None]).flatten(1, 2) @ packed.float()
        own = every.view(len(codes), groups, -1, groups, self.group).diagonal(0, 1, 3).mT
        mixed = torch.addcmul((rows @ low.mT)[..., None], own, place.view(groups, self.group))
        return mixed.flatten(2).to(attention.dtype)

    def take(self, code: Code, index: torch.Tensor) -> Code:
        pages, page = code["page"][index].unique_consecutive(return_inverse=True)
        taken = {"keys": code["keys"][index], "values": code["values"][index], "page": page.to(torch.int32)}
        return taken | {"key_scales": code["key_scales"][pages], "value_scales": code["value_scales"][:, :, index]}

    def join(self, first: Code, second: Code) -> Code:
        moved = second | {"page": second["page"] + len(first["key_scales"])}
        return {
            name: torch.cat([part, moved[name]], 2 if name == "value_scales" else 0) for name, part in first.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Kivi(KVMethod):
    """Old entries in few bits, recent ones whole.

    Attributes:
        bits: per number, 2, 3, 4 or 8.
        group: tokens that share a key scale, and channels that share a value scale; must divide the head size.
        residual: recent entries that are always whole.
    """

    bits: int = 2
    group: int = 32
    residual: int = 32

    paper: ClassVar[Paper] = Paper(
        "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
        "Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu",
        2024,
        "https://arxiv.org/abs/2402.02750",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("peak memory, weights included", "2.6x less", "Llama, Falcon and Mistral, 2 bits", "abstract"),
        Claim("throughput", "2.35x to 3.47x", "Llama, Falcon and Mistral, 2 bits", "abstract"),
    )
    demo: ClassVar[Mapping[str, float]] = {"kivi:bits=4": 1.0, "knorm+kivi:bits=4": 0.5}
    sweep: ClassVar[tuple[str, ...]] = ("kivi:bits=8", "kivi:bits=4", "kivi:bits=3", "kivi:bits=2")

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8) or self.group < 1 or self.residual < 0:
            raise PolicyError(
                f"kivi: bits={self.bits}, group={self.group}, residual={self.residual}. bits must be 2, 3, 4 or 8, "
                "group at least 1, residual zero or more."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(codec=Groups(self.bits, self.group, self.residual))
