"""What one process knows of a folder of segments: where each key's records are, and how full each file is."""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tenuto.tiers import record, segment
from tenuto.tiers.segment import Place

__all__ = ["Extent", "SegmentIndex"]


@dataclass(slots=True)
class Extent:
    """A segment, in bytes: read up to ``end`` of ``size``, ``live`` of them in living records."""

    end: int
    size: int
    live: int = 0


class SegmentIndex:
    """Keys to places, the least recently used key first; a key has several places if a writer was killed in between.

    It can be behind the folder, never wrong about it: a record says itself whether it is still the one meant.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: OrderedDict[str, list[Place]] = OrderedDict()
        self.extents: dict[str, Extent] = {}

    def refresh(self) -> None:
        """Read what is new: segments that appeared, grew or went.

        Raises:
            OSError: the folder cannot be read.
        """
        sizes = _sizes(self.folder, self.extents)
        if gone := self.extents.keys() - sizes.keys():
            for key, places in list(self.places.items()):
                for place in [place for place in places if place.segment in gone]:
                    self.forget(key, place)
            for name in gone:
                del self.extents[name]
        for name in sorted(sizes):
            if name not in self.extents or self.extents[name].size != sizes[name]:
                with suppress(FileNotFoundError):
                    self._read_on(name, sizes[name])

    def _read_on(self, name: str, size: int) -> None:
        known = self.extents.setdefault(name, Extent(len(segment.MAGIC), size))
        known.size = size
        for offset, head in segment.scan(self.folder / name, known.end):
            if head is not None:
                known.end = offset + head.size
                if head.state == record.LIVE:
                    self.places.setdefault(head.key, []).append(Place(name, offset, head.size))
                    known.live += head.size

    def forget(self, key: str, place: Place) -> None:
        """Take one place of a key out, if it is there."""
        places = self.places.get(key, [])
        if place in places:
            places.remove(place)
            self.extents[place.segment].live -= place.size
            if not places:
                del self.places[key]

    def held(self, key: str) -> bool:
        """Whether a living record of this key is where the index says."""
        places = self.places.get(key, [])
        return any(segment.state_at(self.folder, place, key) == record.LIVE for place in places)

    def bytes_used(self) -> int:
        """Bytes of all segments."""
        return sum(extent.size for extent in self.extents.values())

    def emptiest(self) -> str | None:
        """The segment with the most bytes to gain, None if none is at least half dead."""
        wasteful = [name for name, extent in self.extents.items() if 2 * extent.live <= extent.size]
        return max(wasteful, key=lambda name: self.extents[name].size - self.extents[name].live, default=None)

    def takes(self, name: str, more: int, limit: int) -> bool:
        """Whether a segment has room for ``more`` bytes and ends in a whole record."""
        extent = self.extents.get(name)
        return extent is not None and extent.end == extent.size and extent.size + more <= limit

    def new_name(self) -> str:
        """A name for a new segment; names sort by age."""
        numbers = [int(name[:10]) for name in self.extents if name[:10].isdigit()]
        return f"{max(numbers, default=0) + 1:010d}-{secrets.token_hex(4)}.seg"


def _sizes(folder: Path, known: Container[str]) -> dict[str, int]:
    """Bytes of the segments in a folder; files of others are not seen."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".seg") and (entry.name in known or segment.ours(folder / entry.name)):
                with suppress(FileNotFoundError):  # compacted meanwhile
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes
