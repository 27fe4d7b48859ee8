"""A block of KV as bytes that describe and check themselves; :mod:`tenuto.tiers.page` is for named tensors.

    8 bytes   TENUTOVB
    32        name of the block, the digest of :func:`tenuto.vllm.naming.Names.name`
    16        codec with its version, ASCII, filled with zeros
    8         bytes of the block in memory
    8         length of the payload
    4         CRC-32 of all other bytes
    ...       payload: what the codec wrote

Numbers are little-endian. The name covers all that the block depends on, so a block of another model, layout, codec or
tenant that lies under this key, for whatever reason, is not taken for it.
"""

from __future__ import annotations

import struct
import zlib

from tenuto.errors import StoreError

__all__ = ["seal", "unseal"]

MAGIC = b"TENUTOVB"
FRONT = struct.Struct("<8s32s16sQQ")
CRC = struct.Struct("<I")


def _front(name: str, codec: str, size: int, payload: int) -> bytes:
    return FRONT.pack(MAGIC, bytes.fromhex(name[-64:]), codec.encode("ascii"), size, payload)


def seal(payload: bytes, *, name: str, codec: str, size: int) -> bytes:
    """The page of a block.

    Args:
        payload: what the codec wrote; name: of the block, with 64 hex digits at its end; size: its bytes in memory.
    """
    front = _front(name, codec, size, len(payload))
    return b"".join((front, CRC.pack(zlib.crc32(payload, zlib.crc32(front))), payload))


def unseal(data: bytes, *, name: str, codec: str, size: int) -> memoryview:
    """The payload of the page of this block.

    Raises:
        StoreError: the bytes are not that page, whole and undamaged.
    """
    payload = memoryview(data)[FRONT.size + CRC.size :]
    front = _front(name, codec, size, len(payload))
    if data[: FRONT.size] != front:
        raise StoreError("The bytes are no page of this block: their head is another. Compute the block again.")
    if CRC.unpack_from(data, FRONT.size)[0] != zlib.crc32(payload, zlib.crc32(front)):
        raise StoreError("The page of a block is damaged: its checksum is wrong. Compute the block again.")
    return payload
