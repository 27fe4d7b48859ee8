"""How a page stores keys and values: as they are, or in fewer bits, and on request behind an entropy coder.

    raw     exactly as computed
    fp8     8-bit floats (e4m3), no scale
    int8    codes between the smallest and the largest of a group of 32: a key channel over 32 tokens, 32 channels of
    int4    a value (the layout of KIVI, https://arxiv.org/abs/2402.02750), scales in float16, or in float32 where the
            smallest value or the step of a group would not come back to a quarter of a step
    delta8  codes in steps of one size per layer and head, for ``+zstd``: where a group's range is not used up there is
            something to squeeze out. Keys change slowly along a text, so theirs are differences from token to token
            (the idea of CacheGen, https://arxiv.org/abs/2310.07240); values do not.

``+zstd`` puts any of them behind Zstandard, which gets the bytes of floats sorted by their place in the number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn.functional import pad

from tenuto.errors import InputError, StoreError, closest

__all__ = ["PageCodec", "finite", "zstandard_package"]

Tensors = dict[str, torch.Tensor]
BITS = {"int8": 8, "int4": 4}
KINDS = ("raw", "fp8", "int8", "int4", "delta8")
GROUP = 32
VERSIONS = {"int8": "-2", "int4": "-2"}
"""Codecs whose pages were written otherwise before, so that the old ones have another name."""
MOST = 2**32
"""Bytes that a compressed page of unknown shape may grow to."""
KNOWN = (torch.uint8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in KNOWN}


@dataclass(frozen=True, slots=True)
class PageCodec:
    """One way to store a page; ``str`` of it, such as ``int8+zstd``, is its name.

    Attributes:
        kind: raw, fp8, int8, int4 or delta8; zstd: whether an entropy coder follows.
    """

    kind: str = "raw"
    zstd: bool = False

    @classmethod
    def parse(cls, text: str) -> PageCodec:
        """The codec a text names.

        Raises:
            InputError: no such codec, or Zstandard is not installed.
        """
        kind, _, rest = text.partition("+")
        if kind not in KINDS or (rest or "zstd") != "zstd" or text.endswith("+"):
            allowed = [f"{k}{z}" for k in KINDS for z in ("", "+zstd")]
            raise InputError(f"{text!r} is no codec of pages.{closest(text, allowed)}")
        if rest:
            zstandard_package()
        return cls(kind, bool(rest))

    def __str__(self) -> str:
        return self.kind + ("+zstd" if self.zstd else "")

    @property
    def label(self) -> str:
        """What pages say they are written in: the name, with the version of the layout where there were several."""
        return self.kind + VERSIONS.get(self.kind, "") + ("+zstd" if self.zstd else "")

    @classmethod
    def labelled(cls, label: str) -> PageCodec:
        """The codec that reads pages of a label, also of an earlier version.

        Raises:
            InputError: no such codec, or Zstandard is not installed.
        """
        kind, plus, rest = label.partition("+")
        old = next((name for name, version in VERSIONS.items() if kind == name + version), kind)
        return cls.parse(old + plus + rest)

    @property
    def exact(self) -> bool:
        """Whether what comes back is what was given, bit by bit."""
        return self.kind == "raw"

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> Tensors:
        """Keys and values ``[layers, kv_heads, tokens, head_dim]``, of one dtype, as named tensors."""
        if self.kind == "raw":
            named = {"keys": keys, "values": values}
        elif self.kind == "fp8":
            most = torch.finfo(torch.float8_e4m3fn).max
            named = {"keys": keys.clamp(-most, most), "values": values.clamp(-most, most)}
            named = {name: part.to(torch.float8_e4m3fn) for name, part in named.items()}
        elif self.kind == "delta8":
            named = _differences(keys, values)
        else:
            named = _quantise(keys, values, BITS[self.kind])
        return _squeeze(named) if self.zstd else named

    def decode(
        self, named: Tensors, dtype: torch.dtype, shape: tuple[int, ...] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of :meth:`encode`, in ``dtype``.

        Args:
            shape: what keys and values must have, ``[layers, kv_heads, tokens, head_dim]``; None: any.

        Raises:
            StoreError: the tensors are not of this codec, dtype and shape, or their numbers are not finite.
        """
        try:
            most = MOST if shape is None else 16 * math.prod(shape) + 2**16
            named = _unsqueeze(named, most) if self.zstd else named
            self._check(named, dtype)
            if self.kind in BITS:
                keys, values = _restore(named, BITS[self.kind], dtype)
            elif self.kind == "delta8":
                keys, values = _summed(named, dtype)
            else:
                keys, values = named["keys"].to(dtype), named["values"].to(dtype)
            if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3]:
                raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)}")
            if shape is not None and (tuple(keys.shape) != shape or tuple(values.shape) != shape):
                raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} in place of {shape}")
            if not (finite(keys) and finite(values)):
                raise ValueError("numbers that are not finite")
            return keys, values
        except (KeyError, ValueError, RuntimeError, IndexError, TypeError, SafetensorError) as error:
            raise StoreError(f"A page's tensors are not those of the codec {self} ({error!r}).") from error

    def _check(self, named: Tensors, dtype: torch.dtype) -> None:
        stored = {"raw": dtype, "fp8": torch.float8_e4m3fn}.get(self.kind, torch.uint8)
        scales = (torch.float16, torch.float32) if self.kind in BITS else (torch.float32,)
        kinds: dict[str, tuple[torch.dtype, ...]] = {"keys": (stored,), "values": (stored,)}
        if self.kind in BITS:
            kinds |= {"key_scales": scales, "value_scales": scales}
        elif self.kind == "delta8":
            kinds |= {"keys_step": scales, "values_step": scales}
        if bad := [name for name in kinds.keys() | named.keys() if named[name].dtype not in kinds[name]]:
            raise ValueError(f"{bad[0]} of {named[bad[0]].dtype}")

    @staticmethod
    def join(pages: Sequence[Tensors]) -> Tensors:
        """Pages of one size and codec, without ``zstd``, as one whose layers are all theirs."""
        return {name: torch.cat([page[name] for page in pages], int(name.endswith("_scales"))) for name in pages[0]}


def _quantise(keys: torch.Tensor, values: torch.Tensor, bits: int) -> Tensors:
    tokens, width = keys.shape[2], math.gcd(values.shape[-1], GROUP)
    rest = -tokens % GROUP
    long = torch.cat([keys, keys[:, :, -1:].expand(-1, -1, rest, -1)], 2) if rest else keys
    key_codes, key_scales = _codes(long.unflatten(2, (-1, GROUP)), 3, bits)
    value_codes, value_scales = _codes(values.unflatten(-1, (-1, width)), -1, bits)
    codes = key_codes.flatten(2, 3)[:, :, :tokens]
    parts = {"keys": codes, "values": value_codes.flatten(-2)}
    packed = parts if bits == 8 else {name: p[..., ::2] | p[..., 1::2] << 4 for name, p in parts.items()}
    return packed | {"key_scales": key_scales, "value_scales": value_scales}


def _codes(x: torch.Tensor, axis: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8, and ``[2, ...]`` the smallest value and the step of each group, as they will be read back."""
    low, high = x.float().aminmax(dim=axis, keepdim=True)
    exact = torch.stack([low, (high - low) / (2**bits - 1)])
    half = exact.half().float()
    off = (half - exact).abs()
    near = bool((off[0] + (2**bits - 1) * off[1] <= exact[1] / 4).all())
    scales = exact.half() if near else exact
    start, step = scales.float()
    codes = ((x.float() - start) / torch.where(step > 0, step, 1.0)).round_().clamp_(0, 2**bits - 1)
    return codes.to(torch.uint8), scales.squeeze(axis if axis < 0 else axis + 1)


def _restore(named: Tensors, bits: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [named["keys"], named["values"]]
    if bits == 4:
        parts = [torch.stack([p & 15, p >> 4], -1).flatten(-2) for p in parts]
    keys, values = parts
    (key_low, key_step), (value_low, value_step) = named["key_scales"].float(), named["value_scales"].float()
    tokens, width = keys.shape[2], values.shape[-1] // value_low.shape[-1]
    whole = pad(keys, (0, 0, 0, -tokens % GROUP)).unflatten(2, (-1, GROUP)).float()
    restored = torch.addcmul(key_low.unsqueeze(3), whole, key_step.unsqueeze(3)).flatten(2, 3)[:, :, :tokens]
    grouped = values.unflatten(-1, (-1, width)).float()
    other = torch.addcmul(value_low.unsqueeze(-1), grouped, value_step.unsqueeze(-1)).flatten(-2)
    return restored.to(dtype), other.to(dtype)


def _differences(keys: torch.Tensor, values: torch.Tensor) -> Tensors:
    named = {}
    for name, part in (("keys", keys.float()), ("values", values.float())):
        step = part.abs().amax((2, 3), keepdim=True) / 127
        codes = (part / torch.where(step > 0, step, 1.0)).round().to(torch.int8).view(torch.uint8)
        named[name] = codes - pad(codes, (0, 0, 1, -1)) if name == "keys" else codes
        named[f"{name}_step"] = step
    return named


def _summed(named: Tensors, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    keys = named["keys"].cumsum(2, dtype=torch.uint8).view(torch.int8).float() * named["keys_step"]
    return keys.to(dtype), (named["values"].view(torch.int8).float() * named["values_step"]).to(dtype)


def _squeeze(named: Tensors) -> Tensors:
    """All tensors as one that Zstandard has compressed."""
    sorted_ = {name: _planes(part) if part.is_floating_point() else part for name, part in named.items()}
    shapes = {f"{name}.{part.dtype}".replace("torch.", ""): sorted_[name] for name, part in named.items()}
    data = zstandard_package().ZstdCompressor(level=3).compress(save({k: v.contiguous() for k, v in shapes.items()}))
    return {"zstd": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def _unsqueeze(named: Tensors, most: int) -> Tensors:
    zstandard = zstandard_package()
    packed = named["zstd"].numpy().tobytes()
    try:
        if not 0 <= (size := zstandard.frame_content_size(packed)) <= most:
            raise ValueError(f"a frame of {size} bytes, where {most} may be")
        data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=most)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    found = {}
    for label, part in load(data).items():
        name, _, kind = label.partition(".")
        dtype = DTYPES[kind]
        found[name] = _numbers(part, dtype) if dtype.is_floating_point else part
    return found


def _planes(part: torch.Tensor) -> torch.Tensor:
    """The bytes of numbers, all first bytes first, ``[itemsize, ...]`` uint8."""
    return part.contiguous().unsqueeze(-1).view(torch.uint8).movedim(-1, 0).contiguous()


def _numbers(planes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of :func:`_planes`."""
    return planes.flatten(1).T.reshape(-1).view(dtype).view(planes.shape[1:])


def finite(part: torch.Tensor) -> bool:
    """Whether all numbers are finite: one pass to add them up, and another only if the sum is not."""
    return math.isfinite(part.sum().item()) or bool(part.isfinite().all())


def zstandard_package() -> Any:
    """The package zstandard, which is optional.

    Raises:
        InputError: it is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise InputError("A codec with zstd needs Zstandard. Install it: pip install 'tenuto[tiers]'.") from error
    return zstandard
