"""Pages in a folder that several processes share and that survives all of them.

Records lie in segment files that only grow (:mod:`tenuto.tiers.segment`). Nothing else is written: the index is rebuilt
by reading the records' heads when the folder is opened, and every process sees the pages of the others by reading on
where it stopped. Each tier object appends to segments of its own. All that changes the folder is done under its lock,
after such a look at what is new; readers take no lock, because each record says for itself whether it is the one looked
for, alive and undamaged.

A page is discarded by setting one byte of its record. Room comes from discarding the least recently used pages and from
compaction: of a segment that is at least half dead, the living records are copied to another and the file is removed.
A process killed anywhere in between leaves two copies of a page at worst, and never none. Recency is kept in memory; a
folder just opened has the order in which pages were written. No clock is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tenuto.errors import InputError, StoreError
from tenuto.tiers import record, segment
from tenuto.tiers.claimed import claim
from tenuto.tiers.forked import renewed_in_child
from tenuto.tiers.index import SegmentIndex
from tenuto.tiers.segment import Damage, Place
from tenuto.tiers.tier import Tier

__all__ = ["DiskTier"]


class DiskTier(Tier):
    """At most ``capacity`` bytes of files in ``folder``; for a moment, while it compacts, half a segment more.

    A folder that may only be read serves pages; ``put`` and ``discard`` raise. When the disk is full ``put`` raises and
    leaves what was there. A damaged page is a miss, is discarded, and is warned of once. Needs a file system with
    ``flock`` (Linux, macOS).

    Args:
        folder: made if it is not there, for its owner only; capacity: bytes.
        foreign: whether the folder may hold files of others, which are left alone and not counted.
        segment_bytes: a segment that has grown to this is not appended to; at most an eighth of the capacity.
        durable: wait at every put until the data is on the device. Without it, pages survive the end of the process
            however it ends, and pages lost or torn by a power cut are misses.
        lock_timeout: seconds to wait for another process that writes.

    Raises:
        InputError: the capacity is not positive, the folder cannot be made or read, or holds files of others.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        capacity: int,
        foreign: bool = True,
        segment_bytes: int = 64 * 2**20,
        durable: bool = False,
        lock_timeout: float = 10.0,
    ) -> None:
        if capacity <= 0 or segment_bytes <= 0:
            raise InputError(f"A disk tier of {capacity} bytes in segments of {segment_bytes}. Give more than zero.")
        self.folder, self.capacity, self.segment_bytes = Path(folder), capacity, min(segment_bytes, capacity // 8)
        self.durable, self.lock_timeout = durable, lock_timeout
        self._index = SegmentIndex(self.folder)
        self._mine = ""  # the segment this object appends to
        self.after_fork()
        renewed_in_child(self)
        try:
            claim(self.folder, foreign)
            self._index.refresh()
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be used: {error.strerror}. Give another.") from error
        with suppress(StoreError), self._changing():
            for draft in self.folder.glob("*.part"):  # of a process that was killed: drafts exist under the lock only
                if segment.ours(draft):
                    draft.unlink()

    def after_fork(self) -> None:
        """A new lock, which no thread of the parent holds."""
        self._mutex = threading.RLock()

    def put(self, key: str, data: bytes) -> None:
        packed = record.pack(key, data)
        need = len(packed) + len(segment.MAGIC)
        if need > self.capacity:
            raise StoreError(f"A page of {len(data)} bytes does not fit into {self.capacity}. Give the tier more.")
        with self._changing():
            if not self._index.held(key):
                self._shrink(self.capacity - need)
                self._append(key, packed)
            self._index.places.move_to_end(key)

    def get(self, key: str) -> bytes | None:
        for _ in range(3):  # a page may be moved while it is looked for
            with self._mutex:
                places = self._index.places.get(key, [])[::-1]
                if places:
                    self._index.places.move_to_end(key)
            for place in places:
                try:
                    if (data := segment.read(self.folder, place, key)) is not None:
                        return data
                    with self._mutex:
                        self._index.forget(key, place)
                except StoreError as error:
                    self._damaged(key, place, error)
                except OSError as error:
                    self._warn_once(f"A page in {self.folder} cannot be read ({error.strerror}) and counts as missing.")
                    return None
            with self._mutex, suppress(OSError):
                self._index.refresh()
                if not places and key not in self._index.places:
                    return None
        return None

    def contains(self, key: str) -> bool:
        with self._mutex, suppress(OSError):
            if not self._index.held(key):
                self._index.refresh()
            return self._index.held(key)
        return False

    def discard(self, key: str) -> None:
        """As :meth:`Tier.discard`. The bytes stay in the file until its segment is compacted or removed."""
        with self._changing():
            self._evict(key)

    def bytes_used(self) -> int:
        with self._mutex, suppress(OSError):
            self._index.refresh()
        return self._index.bytes_used()

    def prune(self, limit: int) -> int:
        """Drop the least recently used pages until at most ``limit`` bytes are used; the bytes freed.

        Raises:
            InputError: a negative limit. StoreError: the folder cannot be written.
        """
        if limit < 0:
            raise InputError(f"A store was to be pruned to {limit} bytes. Give zero or more.")
        with self._changing():
            before = self.bytes_used()
            self._shrink(limit)
            return before - self.bytes_used()

    def sweep(self) -> int:
        """Remove the bytes of discarded pages from the folder: every segment that has some is written anew; the bytes
        freed.

        Raises:
            StoreError: the folder cannot be written.
        """
        with self._changing():
            before = self.bytes_used()
            for name, extent in list(self._index.extents.items()):
                if extent.live + len(segment.MAGIC) < extent.size:
                    self._compact(name)
            return before - self.bytes_used()

    def keys(self) -> list[str]:
        """The keys held, least recently used first."""
        with self._mutex, suppress(OSError):
            self._index.refresh()
        return list(self._index.places)

    def verify(self) -> Iterator[Damage]:
        """Read every living record and yield the damaged ones, as :func:`segment.damage` does for one file."""
        for path in [path for path in sorted(self.folder.glob("*.seg")) if segment.ours(path)]:
            with suppress(FileNotFoundError):  # compacted meanwhile
                yield from segment.damage(path)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            with self._mutex, segment.locked(self.folder, self.lock_timeout):
                self._index.refresh()
                yield
        except OSError as error:
            why = f"{error.strerror}. Make room or give another folder."
            raise StoreError(f"The store {self.folder} was not changed: {why}") from error

    def _append(self, key: str, packed: bytes) -> None:
        if not self._index.takes(self._mine, len(packed), self.segment_bytes):
            self._mine = self._index.new_name()
            segment.create(self.folder / self._mine, self.durable)
        segment.append(self.folder / self._mine, packed, self.durable)
        self._index.refresh()

    def _evict(self, key: str) -> None:
        for place in list(self._index.places.get(key, [])):
            if segment.state_at(self.folder, place, key) == record.LIVE:
                segment.kill(self.folder, place, self.durable)
            self._index.forget(key, place)

    def _shrink(self, limit: int) -> None:
        while self._index.bytes_used() > limit:
            if (name := self._index.emptiest()) is not None:
                self._compact(name)
            else:
                self._evict(next(iter(self._index.places)))

    def _compact(self, name: str) -> None:
        if name == self._mine:
            self._mine = ""
        for key, places in list(self._index.places.items()):
            for place in [place for place in places if place.segment == name]:
                with suppress(StoreError):  # damaged: not copied
                    if (data := segment.read(self.folder, place, key)) is not None:
                        self._append(key, record.pack(key, data))
        (self.folder / name).unlink()
        self._index.refresh()

    def _damaged(self, key: str, place: Place, error: StoreError) -> None:
        self._warn_once(f"{error} It counts as missing.")
        with suppress(StoreError), self._changing():
            try:
                if segment.read(self.folder, place, key) is not None:
                    return  # it was still being written
            except StoreError:
                segment.kill(self.folder, place, self.durable)
        with self._mutex:
            self._index.forget(key, place)
