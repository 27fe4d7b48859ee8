"""One page under its key, as it lies in a segment of the disk tier or under a key of a server.

    1 byte    0 live, 255 dead; the one byte that is ever changed in place
    3         TKR
    2         length of the key
    8         length of the data
    4         CRC-32 of key and data
    4         CRC-32 of the 17 bytes before it and of the key
    ...       key, UTF-8
    ...       data

Numbers are little-endian. The first checksum makes lengths trustworthy before they are used, the second the data.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from tenuto.errors import StoreError

__all__ = ["DEAD", "LIVE", "LONGEST_HEAD", "Head", "cut", "matches", "pack", "parse", "unpack"]

LIVE, DEAD = 0, 255
MAGIC = b"TKR"
FRONT = struct.Struct("<B3sHQI")
CRC = struct.Struct("<I")
LONGEST_KEY = 1024
LONGEST_HEAD = FRONT.size + CRC.size + LONGEST_KEY


class Head(NamedTuple):
    """What stands before the data: its state, key, own length, the data's length and checksum."""

    state: int
    key: str
    head_bytes: int
    data_bytes: int
    crc: int

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return self.head_bytes + self.data_bytes


def pack(key: str, data: bytes) -> bytes:
    """A live record.

    Raises:
        StoreError: the key is empty or longer than 1,024 bytes.
    """
    name = key.encode("utf-8", "surrogatepass")
    if not 0 < len(name) <= LONGEST_KEY:
        raise StoreError(f"A key of {len(name)} bytes was given. Give 1 to {LONGEST_KEY}.")
    front = FRONT.pack(LIVE, MAGIC, len(name), len(data), zlib.crc32(data, zlib.crc32(name)))
    return b"".join((front, CRC.pack(zlib.crc32(name, zlib.crc32(front[1:]))), name, data))


def parse(data: bytes) -> Head | None:
    """The head at the beginning of ``data``, None if there is no undamaged one."""
    if len(data) < FRONT.size + CRC.size:
        return None
    state, magic, name_bytes, data_bytes, crc = FRONT.unpack_from(data)
    size = FRONT.size + CRC.size + name_bytes
    name = data[FRONT.size + CRC.size : size]
    (expected,) = CRC.unpack_from(data, FRONT.size)
    if magic != MAGIC or len(data) < size or zlib.crc32(name, zlib.crc32(data[1 : FRONT.size])) != expected:
        return None
    return Head(state, name.decode("utf-8", "surrogatepass"), size, data_bytes, crc)


def cut(data: bytes) -> bool:
    """Whether ``data``, which :func:`parse` did not take, is the beginning of a head whose end is missing."""
    if len(data) < FRONT.size:
        return True
    name_bytes: int = FRONT.unpack_from(data)[2]
    return len(data) < FRONT.size + CRC.size + name_bytes


def matches(head: Head, data: bytes) -> bool:
    """Whether ``data`` is the record's data, undamaged."""
    name = head.key.encode("utf-8", "surrogatepass")
    return len(data) == head.data_bytes and zlib.crc32(data, zlib.crc32(name)) == head.crc


def unpack(key: str, record: bytes) -> bytes | None:
    """The data of a live record of this key; None if it is of another key, dead or damaged."""
    head = parse(record[:LONGEST_HEAD])
    if head is None or head.state != LIVE or head.key != key:
        return None
    data = record[head.head_bytes :]
    return data if matches(head, data) else None
