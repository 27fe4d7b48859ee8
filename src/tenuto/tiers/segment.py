"""A file of records, one after the other, that only grows; and the lock of the folder that holds such files.

A writer that is killed leaves at most one unfinished record, at the end of its file. It is never read as a page, and
nothing is ever written behind it: the next record goes into a new file.

A file is ours if it has a name that this module gives and begins as this module begins one; all others are left alone.
Nothing but regular files is ever opened, and what is made is for its owner only.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tenuto.errors import StoreError
from tenuto.tiers import record
from tenuto.tiers.record import Head

__all__ = [
    "MAGIC",
    "Damage",
    "Place",
    "append",
    "create",
    "damage",
    "kill",
    "locked",
    "opened",
    "ours",
    "read",
    "scan",
    "state_at",
]

MAGIC = b"TENUTOS1"
NAME = re.compile(r"\d{10}-[0-9a-f]{8}\.(seg|part)")


class Damage(NamedTuple):
    """A record that cannot be read: its file, its offset in bytes, and its key, None if even that is unreadable."""

    path: Path
    offset: int
    key: str | None


class Place(NamedTuple):
    """Where a record is: name of the file, offset and length in bytes."""

    segment: str
    offset: int
    size: int


@contextmanager
def opened(path: Path, flags: int) -> Iterator[io.FileIO]:
    """A regular file, unbuffered; made, if ``flags`` say so, for its owner only.

    Raises:
        OSError: it is a link, a pipe or a device, or cannot be opened.
    """
    number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, f"{path.name} is no regular file")
    mode = "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "ab" if flags & os.O_APPEND else "rb+"
    with io.FileIO(number, mode) as file:
        yield file


def ours(path: Path) -> bool:
    """Whether this module made the file: a segment, or the beginning of one."""
    if NAME.fullmatch(path.name) is None:
        return False
    try:
        with opened(path, os.O_RDONLY) as file:
            front = os.pread(file.fileno(), len(MAGIC) + record.LONGEST_HEAD, 0)
    except OSError:
        return False
    return MAGIC.startswith(front[: len(MAGIC)]) or record.parse(front[len(MAGIC) :]) is not None  # else damaged


@contextmanager
def locked(folder: Path, timeout: float) -> Iterator[None]:
    """Hold the folder against every other writer, of this process or another. A dead holder's lock is free at once.

    Raises:
        StoreError: another writer held it for all of ``timeout`` seconds.
    """
    with opened(folder / "lock", os.O_RDWR | os.O_CREAT) as file:
        holder = file.fileno()
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"Another process has held {folder} for {timeout:g} s. End it, or give a longer lock_timeout."
                    ) from None
                time.sleep(0.001)
        yield


def create(path: Path, durable: bool) -> None:
    """An empty segment, written beside and renamed, so that one with half a beginning is never seen."""
    draft = path.with_suffix(".part")
    with opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        try:
            file.write(MAGIC)
            if durable:
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append(path: Path, data: bytes, durable: bool) -> None:
    """Write one record at the end.

    Raises:
        OSError: it was not written, and the file is as long as before or ends in an unfinished record; or it was
            written and may not be on the device.
    """
    with opened(path, os.O_WRONLY | os.O_APPEND) as file:
        before = file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise
        if durable:
            os.fsync(file.fileno())


def scan(path: Path, offset: int) -> Iterator[tuple[int, Head | None]]:
    """Offset and head of each whole record from ``offset`` on; data is not read.

    Ends before an unfinished record. Gives None once, and ends, where bytes are damaged so that nothing after them
    can be found.
    """
    with opened(path, os.O_RDONLY) as file:
        size = os.fstat(file.fileno()).st_size
        if os.pread(file.fileno(), len(MAGIC), 0) != MAGIC:
            yield 0, None
            return
        while offset < size:
            front = os.pread(file.fileno(), record.LONGEST_HEAD, offset)
            head = record.parse(front)
            if head is None:
                if not record.cut(front):
                    yield offset, None
                return
            if offset + head.size > size:
                return
            yield offset, head
            offset += head.size


def read(folder: Path, place: Place, key: str) -> bytes | None:
    """The data of a record, None if the file is gone or the record there is dead or another one now.

    Raises:
        StoreError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        with opened(folder / place.segment, os.O_RDONLY) as file:
            head = record.parse(os.pread(file.fileno(), record.LONGEST_HEAD, place.offset))
            if head is not None and (head.key != key or head.state != record.LIVE):
                return None
            data = os.pread(file.fileno(), head.data_bytes, place.offset + head.head_bytes) if head else b""
    except FileNotFoundError:
        return None
    if head is None or not record.matches(head, data):
        raise StoreError(f"A page in {folder / place.segment} at byte {place.offset} is damaged.")
    return data


def damage(path: Path) -> Iterator[Damage]:
    """Read every living record of a segment and yield those that are damaged; what is unfinished is not.

    Raises:
        OSError: it cannot be read.
    """
    for offset, head in scan(path, len(MAGIC)):
        if head is None or head.state not in (record.LIVE, record.DEAD):
            yield Damage(path, offset, head and head.key)
        elif head.state == record.LIVE:
            try:
                read(path.parent, Place(path.name, offset, head.size), head.key)
            except StoreError:
                yield Damage(path, offset, head.key)


def state_at(folder: Path, place: Place, key: str) -> int | None:
    """The state byte of the record of this key there, None if there is none."""
    try:
        with opened(folder / place.segment, os.O_RDONLY) as file:
            head = record.parse(os.pread(file.fileno(), record.LONGEST_HEAD, place.offset))
    except FileNotFoundError:
        return None
    return head.state if head is not None and head.key == key else None


def kill(folder: Path, place: Place, durable: bool) -> None:
    """Mark the record there as dead: one byte, so it is done or not done, never half."""
    with opened(folder / place.segment, os.O_RDWR) as file:
        if place.offset < os.fstat(file.fileno()).st_size:  # else someone has cut the file
            os.pwrite(file.fileno(), bytes([record.DEAD]), place.offset)
        if durable:
            os.fsync(file.fileno())
