"""A page as bytes that describe and check themselves. Nothing in them is ever executed or unpickled.

    8 bytes   TENUTOKV
    2         format version, 1
    4         length of the header
    8         length of the payload
    ...       header: JSON, the fields of PageFacts and the names of the tensors
    ...       payload: a safetensors file
    32        SHA-256 of all bytes before it

Numbers are little-endian. A page is accepted whole or not at all: any cut, added or changed byte is a StoreError.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from tenuto.errors import StoreError

__all__ = ["Page", "PageFacts", "decode", "encode"]

MAGIC = b"TENUTOKV"
VERSION = 1
FRONT = struct.Struct("<8sHIQ")
LONGEST_HEADER = 1 << 16
SUM = 32
KINDS = {
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Dtypes of pages; tensors of others are read as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFacts:
    """What a page holds.

    Attributes:
        model: fingerprint of the model; dtype: of the keys and values as computed; codec: how they are stored.
        start, stop: the tokens start, ..., stop - 1 of the sequence, 0 <= start < stop.

    Raises:
        StoreError: a field has another type, or the range is empty.
    """

    model: str
    dtype: str
    codec: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        for name in ("model", "dtype", "codec"):
            if not isinstance(getattr(self, name), str):
                raise StoreError(f"A page's {name} is {getattr(self, name)!r}. It must be text.")
        if not (type(self.start) is type(self.stop) is int and 0 <= self.start < self.stop):
            raise StoreError(f"A page has tokens {self.start!r} to {self.stop!r}. Give 0 <= start < stop.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A decoded page: its facts, and its tensors by name, on the CPU."""

    facts: PageFacts
    tensors: dict[str, torch.Tensor]


def encode(tensors: dict[str, torch.Tensor], facts: PageFacts) -> bytes:
    """A page as bytes; the tensors may be on any device, and are written as they are.

    Raises:
        StoreError: the header would be longer than 64 KiB (too many names), or a dtype cannot be written.
    """
    header = json.dumps({**asdict(facts), "tensors": sorted(tensors)}).encode()
    if len(header) > LONGEST_HEADER:
        raise StoreError(f"The header of a page has {len(header)} bytes, {LONGEST_HEADER} allowed. Use fewer tensors.")
    try:
        payload = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"The tensors of a page cannot be written ({error}). Give dense tensors.") from error
    front = FRONT.pack(MAGIC, VERSION, len(header), len(payload))
    digest = hashlib.sha256()
    for part in (front, header, payload):
        digest.update(part)
    return b"".join((front, header, payload, digest.digest()))


def decode(data: bytes) -> Page:
    """The page in ``data``.

    Raises:
        StoreError: the bytes are not one whole, undamaged page of this format version.
    """
    if len(data) < FRONT.size + SUM:
        raise _broken("it is cut off")
    magic, version, header_bytes, payload_bytes = FRONT.unpack_from(data)
    if magic != MAGIC:
        raise _broken("it does not begin as a page does")
    if version != VERSION:
        raise _broken(f"it has format version {version}, and {VERSION} is read here")
    if header_bytes > LONGEST_HEADER:
        raise _broken(f"its header has {header_bytes} bytes, {LONGEST_HEADER} allowed")
    expected = FRONT.size + header_bytes + payload_bytes + SUM
    if len(data) != expected:
        raise _broken(f"it has {len(data)} bytes and should have {expected}")
    view = memoryview(data)
    if hashlib.sha256(view[:-SUM]).digest() != view[-SUM:]:
        raise _broken("its checksum is wrong")
    middle = FRONT.size + header_bytes
    facts, names = _facts(bytes(view[FRONT.size : middle]))
    try:
        tensors = _tensors(view[middle:-SUM])
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, struct.error) as error:
        raise _broken(f"its payload is not safetensors, {error}") from error
    if sorted(tensors) != names:
        raise _broken(f"its header names the tensors {names}, its payload {sorted(tensors)}")
    return Page(facts=facts, tensors=tensors)


def _tensors(payload: memoryview) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file: as its own reader has them, but copied once and not twice."""
    (size,) = struct.unpack_from("<Q", payload)
    told = json.loads(bytes(payload[8 : 8 + size]))
    told.pop("__metadata__", None)
    if any(one["dtype"] not in KINDS for one in told.values()):
        return dict(load(bytes(payload)))
    body, found, end = payload[8 + size :], dict[str, torch.Tensor](), 0
    for name, one in sorted(told.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = KINDS[one["dtype"]], one["shape"], one["data_offsets"]
        if any(type(number) is not int or number < 0 for number in shape):
            raise ValueError(f"the shape {shape}")
        if start != end or stop > len(body) or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} in the bytes {start} to {stop}")
        part = bytearray(body[start:stop])
        found[name] = (torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)).view(shape)
        end = stop
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes of no tensor")
    return found


def _facts(header: bytes) -> tuple[PageFacts, Any]:
    try:
        fields = json.loads(header)
        names = fields.pop("tensors")
        return PageFacts(**fields), names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(f"its header is not that of a page, {error!r}") from error


def _broken(why: str) -> StoreError:
    return StoreError(f"The bytes are not a usable page: {why}. Compute the page again.")
