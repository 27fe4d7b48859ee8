"""How a block of KV is written in a tier: as it is, losslessly packed, or in 8 bits.

A block is opaque: its values lie in the order that the device's kernels want, so a codec may look at a value's bits but
not at which token, head or channel it belongs to.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tenuto.errors import InputError, StoreError, closest
from tenuto.tiers.codec import zstandard_package

__all__ = ["CODECS", "BlockCodec", "Int8", "Raw", "Zstd", "block_codec"]

Row = NDArray[np.uint8]
FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GROUP = 64
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCodec(ABC):
    """Bytes of a block to bytes of a page and back.

    Attributes:
        dtype: of the values in the block, vLLM's name for it, such as "bfloat16" or "fp8".
        name: with the version of its format; exact: whether a block comes back bit by bit.
    """

    dtype: str
    name: ClassVar[str]
    exact: ClassVar[bool] = True

    @abstractmethod
    def encode(self, row: Row) -> bytes:
        """The page of a block.

        Args:
            row: the block's bytes ``[bytes]``.

        Raises:
            StoreError: the block cannot be written this way.
        """

    @abstractmethod
    def decode(self, data: memoryview, row: Row) -> None:
        """Fill ``row`` ``[bytes]`` from a page.

        Raises:
            StoreError: it is not the page of a block of this size; what is in ``row`` then is no block.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(BlockCodec):
    """As it is."""

    name: ClassVar[str] = "raw.1"

    def encode(self, row: Row) -> bytes:
        return row.tobytes()

    def decode(self, data: memoryview, row: Row) -> None:
        _fill(row, np.frombuffer(data, np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Zstd(BlockCodec):
    """Zstandard over the values' first bytes, which hold the exponents and repeat; mantissas do not shrink and stay.

        8 bytes   length of the Zstandard frame, little-endian
        ...       the frame: the first byte of every value
        ...       the second byte of every value, and so on

    In bfloat16 and float32 the exponent straddles two bytes; turning a value left by its sign bit mends that. Values of
    one byte are packed as they are.

    Raises:
        InputError: the package zstandard is not installed.
    """

    name: ClassVar[str] = "zstd.1"
    LEVEL: ClassVar[int] = 1

    def __post_init__(self) -> None:
        zstandard_package()

    def encode(self, row: Row) -> bytes:
        planes = self._planes(row)
        frame = zstandard_package().ZstdCompressor(level=self.LEVEL).compress(planes[0])
        return b"".join((LENGTH.pack(len(frame)), frame, *planes[1:]))

    def decode(self, data: memoryview, row: Row) -> None:
        zstandard, unit = zstandard_package(), _unit(self.dtype, row)
        width = unit.itemsize if unit else 1
        try:
            stop = LENGTH.size + LENGTH.unpack_from(data)[0]
            told = zstandard.get_frame_parameters(data[LENGTH.size : stop]).content_size
            if told * width != row.size or len(data) - stop != told * (width - 1):
                raise StoreError(f"A block of {row.size} bytes was read, and its page is that of another size.")
            first = zstandard.ZstdDecompressor().decompress(data[LENGTH.size : stop])
        except (zstandard.ZstdError, struct.error) as error:
            raise StoreError(f"A page does not hold a Zstandard frame: {error}.") from error
        planes = [np.frombuffer(first, np.uint8), *np.frombuffer(data[stop:], np.uint8).reshape(width - 1, told)]
        _fill(row, planes[0] if unit is None else self._values(planes, unit))

    def _planes(self, row: Row) -> list[bytes]:
        unit = _unit(self.dtype, row)
        if unit is None:
            return [row.tobytes()]
        values = row.view(unit)
        if self.dtype != "float16":
            values = (values << 1) | (values >> (8 * unit.itemsize - 1))
        return [(values >> (8 * place)).astype(np.uint8).tobytes() for place in reversed(range(unit.itemsize))]

    def _values(self, planes: list[Row], unit: np.dtype[Any]) -> Row:
        values = planes[0].astype(unit)
        for plane in planes[1:]:
            values <<= 8
            values |= plane
        if self.dtype != "float16":
            sign = values << (8 * unit.itemsize - 1)
            values >>= 1
            values |= sign
        return values.view(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8(BlockCodec):
    """Symmetric 8-bit integers with a float32 scale for every 64 values, in the order they lie in.

    Raises:
        InputError: the dtype is not a float of 16 or 32 bits.
    """

    name: ClassVar[str] = "int8.1"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dtype not in FLOATS:
            raise InputError(
                f"The codec int8 was asked for a KV cache of {self.dtype}. It takes {', '.join(FLOATS)}; "
                "use raw or zstd."
            )

    def encode(self, row: Row) -> bytes:
        try:
            values = torch.from_numpy(row).view(FLOATS[self.dtype]).view(-1, GROUP).float()
        except RuntimeError as error:
            raise StoreError(f"A block of {row.size} bytes is no whole number of {GROUP} values.") from error
        scale = values.abs().amax(-1, keepdim=True) / 127
        if not bool(scale.isfinite().all()):
            raise StoreError("A block has values that are not finite, which 8 bits cannot hold.")
        levels = (values / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
        return scale.numpy().tobytes() + levels.numpy().tobytes()

    def decode(self, data: memoryview, row: Row) -> None:
        dtype = FLOATS[self.dtype]
        groups = row.size // dtype.itemsize // GROUP
        if len(data) != groups * (4 + GROUP):
            raise StoreError(f"A block of {row.size} bytes was read, and its page has {len(data)}.")
        scale = torch.from_numpy(np.frombuffer(data, np.float32, groups).copy())
        if not bool(scale.isfinite().all()):
            raise StoreError("A page of a block has scales that are not finite.")
        levels = torch.from_numpy(np.frombuffer(data, np.int8, offset=4 * groups).copy())
        values = levels.view(groups, GROUP).float().mul_(scale[:, None])
        torch.from_numpy(row).view(dtype).view(groups, GROUP).copy_(values)


CODECS: dict[str, Callable[..., BlockCodec]] = {"raw": Raw, "zstd": Zstd, "int8": Int8}


def block_codec(name: str, dtype: str) -> BlockCodec:
    """A codec by its short name.

    Raises:
        InputError: there is none of that name, or it does not take this dtype.
    """
    if name not in CODECS:
        raise InputError(f"No codec is called {name!r}.{closest(name, CODECS)}")
    return CODECS[name](dtype=dtype)


def _unit(dtype: str, row: Row) -> np.dtype[Any] | None:
    """An unsigned integer as wide as a value, None where values have one byte or do not fill the row."""
    if dtype not in FLOATS or row.size % FLOATS[dtype].itemsize:
        return None
    return np.dtype(f"<u{FLOATS[dtype].itemsize}")


def _fill(row: Row, found: Row) -> None:
    if found.size != row.size:
        raise StoreError(f"A block of {row.size} bytes was read, and its page holds {found.size}.")
    row[:] = found
