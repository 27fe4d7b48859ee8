"""KIVI: old keys and values in 2, 3 or 4 bits, keys quantised per channel and values per token; recent ones stay whole.

Keys have a few channels of large size, values have not: a key channel shares one scale over ``group`` tokens, and
``group`` channels of a value share one scale. The codes of a token are packed into bytes, channel by channel, so that
evicting a token moves codes and never decodes and rounds again. Attention decodes a block of entries at a time.

What it does not do: it evicts nothing (``snapkv+kivi`` does both), and its scales are in the model's own dtype.
``residual`` entries are always whole, and up to ``group`` more until a page is full.

Source: Liu et al. 2024, KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, https://arxiv.org/abs/2402.02750
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Code, Codec, KVMethod, KVPolicy, Paper

__all__ = ["Groups", "Kivi", "pack", "rounded", "unpack"]

FEW = 32
"""Queries up to which it is cheaper not to decode; beyond, decoded entries serve them all."""


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes ``[..., n]`` uint8 below ``2 ** bits`` as bytes ``[..., n * bits / 8]``; byte i holds the codes i,
    i + n * bits / 8, ... from its lowest bits up, so that each part is unpacked as one run of channels. Three bits are
    two and one, packed one after the other."""
    if bits == 3:
        return torch.cat([pack(codes & 3, 2), pack(codes >> 2, 1)], -1)
    parts = codes.chunk(8 // bits, -1)
    packed = parts[0].clone()
    for number, part in enumerate(parts[1:], 1):
        packed |= part << (number * bits)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> list[torch.Tensor]:
    """The parts that :func:`pack` packed, uint8, of equal width, in the order of their channels."""
    if bits == 3:
        two, one = packed.split([packed.shape[-1] // 3 * 2, packed.shape[-1] // 3], -1)
        return [torch.cat(unpack(two, 2), -1) | torch.cat(unpack(one, 1), -1) << 2]
    top = 2**bits - 1
    parts = [packed >> (number * bits) if number else packed for number in range(8 // bits)]
    return [part if number == len(parts) - 1 else part & top for number, part in enumerate(parts)]


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
    page of key scales an entry belongs to; ``key_low``, ``key_step [pages, head_dim]``; ``value_low``, ``value_step
    [entries, head_dim / group]``.
    """

    bits: int = 2
    group: int = 32
    residual: int = 32

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
        scales = 2 * itemsize * (head_dim / self.group + head_dim / self.page)
        return 2 * head_dim * self.bits / 8 + 4 + scales

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
            "key_low": key_low[:, 0],
            "key_step": key_step[:, 0],
            "value_low": value_low[..., 0],
            "value_step": value_step[..., 0],
        }

    def keys(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        codes, page = torch.cat(unpack(code["keys"][start:stop], self.bits), -1), code["page"][start:stop]
        return torch.addcmul(code["key_low"][page], codes.to(dtype), code["key_step"][page]).to(dtype)

    def values(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        codes = torch.cat(unpack(code["values"][start:stop], self.bits), -1).to(dtype).unflatten(-1, (-1, self.group))
        low, step = code["value_low"][start:stop, :, None], code["value_step"][start:stop, :, None]
        return torch.addcmul(low, codes, step).flatten(-2).to(dtype)

    def logits(self, code: Code, query: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """``q · (low + code * step) = q · low + (q * step) · code``: the step goes into the query, page by page."""
        whole = len(code["page"]) == len(code["key_low"]) * self.group and start % self.group == stop % self.group == 0
        if not whole or query[..., 0].numel() > FEW:
            return query @ self.keys(code, start, stop, query.dtype).T
        pages = slice(start // self.group, stop // self.group)
        rows = query.flatten(0, 1).float()
        parts = unpack(code["keys"][start:stop], self.bits)
        scaled = (rows * code["key_step"][pages, None].float()).split(parts[0].shape[1], -1)
        found = (rows @ code["key_low"][pages].float().T).T[..., None]
        for part, codes in zip(scaled, parts, strict=True):
            found = torch.baddbmm(found, part, codes.float().unflatten(0, (-1, self.group)).transpose(1, 2))
        return found.transpose(0, 1).flatten(1).view(*query.shape[:2], -1).to(query.dtype)

    def mix(self, code: Code, attention: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """``a · (low + code * step) = a · low + (a * step) · code``: the step goes into the attention, per group."""
        parts = unpack(code["values"][start:stop], self.bits) if attention[..., 0].numel() <= FEW else []
        width = parts[0].shape[1] if parts else 1
        if not parts or max(width, self.group) % min(width, self.group):
            return attention @ self.values(code, start, stop, attention.dtype)
        rows, run = attention.flatten(0, 1).float(), min(width, self.group)
        low, step = (code[name][start:stop].float() for name in ("value_low", "value_step"))
        found, channel = [], 0
        for part in parts:
            for codes in part.float().split(run, -1):
                group = channel // self.group
                found.append((rows * step[:, group]) @ codes)
                channel += run
        mixed = torch.cat(found, -1) + (rows @ low).repeat_interleave(self.group, -1)
        return mixed.view(*attention.shape[:2], -1).to(attention.dtype)

    def take(self, code: Code, index: torch.Tensor) -> Code:
        pages, page = code["page"][index].unique_consecutive(return_inverse=True)
        taken = {name: code[name][index] for name in ("keys", "values", "value_low", "value_step")}
        scales = {name: code[name][pages] for name in ("key_low", "key_step")}
        return taken | scales | {"page": page.to(torch.int32)}

    def join(self, first: Code, second: Code) -> Code:
        later = second["page"] + len(first["key_low"])
        return {name: torch.cat([first[name], later if name == "page" else second[name]]) for name in first}


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
    sweep: ClassVar[tuple[str, ...]] = ("kivi:bits=8", "kivi:bits=4", "kivi:bits=3", "kivi:bits=2")

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8) or self.group < 1 or self.residual < 0:
            raise PolicyError(
                f"kivi: bits={self.bits}, group={self.group}, residual={self.residual}. bits must be 2, 3, 4 or 8, "
                "group at least 1, residual zero or more."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(codec=Groups(self.bits, self.group, self.residual))
