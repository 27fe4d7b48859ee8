"""A store under fire: two processes on one folder, killed again and again, and pages of broken bytes.

    python benchmarks/store_faults.py [--operations 10000 --kills 40 --fuzz-seconds 300 --seed 0]

First two writers put, get and discard pages at random in one folder; every now and then one of them is killed with
``kill -9`` in the midst of it, the store is verified, and a new writer goes on. A writer's last acts before its death
are checked: what it said was stored must be there, whatever is found must be right. One writer may not write files
beyond a limit, so that its disk is full now and then. In the end bits of the segments are flipped. Then pages are
mutated for some time: each must be refused, unless its bytes are those of the page.

Prints what was counted and exits with 1 if anything was wrong or lost.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tenuto.errors import StoreError
from tenuto.tiers import page as pages
from tenuto.tiers.disk import DiskTier

CAPACITY = 2**30
LIMIT = 400_000
"""Bytes that the second writer's files may have."""


def content(key: str) -> bytes:
    """The one right content of a key, 50 to 8,000 bytes."""
    dice = random.Random(key)
    return dice.randbytes(dice.randrange(50, 8000))


def writer(folder: str, name: str, seed: int, limited: bool) -> None:
    """Act at random for ever, and say so in one line per act: ``+key`` stored, ``-key`` discarded, ``!key`` wrong."""
    if limited:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    tier, dice, number = DiskTier(folder, capacity=CAPACITY, segment_bytes=2**20), random.Random(seed), 0
    mine: list[str] = []
    while True:
        act, told = dice.random(), b".\n"
        key = dice.choice(mine) if mine and act < 0.8 else f"shared-{dice.randrange(100)}"
        if act < 0.45:
            key = f"{name}-{number}" if act < 0.35 else f"shared-{dice.randrange(100)}"
            number += 1
            try:
                tier.put(key, content(key))
                told = f"+{key}\n".encode()
                mine += [key] if key.startswith(name) else []
            except StoreError:
                told = b"f\n"  # full
        elif act < 0.5 and key in mine:
            os.write(1, f"?{key}\n".encode())
            mine.remove(key)
            tier.discard(key)
            told = f"-{key}\n".encode()
        elif (found := tier.get(key)) is not None and found != content(key):
            told = f"!{key}\n".encode()
        elif found is None and key in mine:
            told = f"*{key}\n".encode()
        os.write(1, told)


class Fire:
    """Two writers on a folder, and what they said."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.dice = folder, random.Random(seed)
        self.held: set[str] = set()
        self.counts = {"operations": 0, "kills": 0, "wrong": 0, "lost": 0, "full disks": 0, "damaged after a kill": 0}
        self.writers = [self._start(0), self._start(1)]

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        name, seed = f"w{self.counts['kills']}.{place}", self.dice.randrange(2**32)
        command = [sys.executable, __file__, "--writer", str(self.folder), name, str(seed), str(place)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, pipesize=2**20)

    def kill(self, place: int) -> None:
        """End a writer in mid-act, hear its last words, verify, start another."""
        writer = self.writers[place]
        writer.kill()
        said, _ = writer.communicate()
        self.counts["kills"] += 1
        for line in said.decode().split("\n")[:-1]:
            self.counts["operations"] += line[0] != "?"
            mark, key = line[0], line[1:]
            if mark == "+" and not key.startswith("shared"):
                self.held.add(key)
            elif mark in "?-":
                self.held.discard(key)  # said before it is done: a killed discard may have been done or not
            self.counts["wrong"] += mark == "!"
            self.counts["lost"] += mark == "*"
            self.counts["full disks"] += mark == "f"
        with DiskTier(self.folder, capacity=CAPACITY) as tier:
            self.counts["damaged after a kill"] += len(list(tier.verify()))
        self.writers[place] = self._start(place)

    def end(self) -> None:
        """Stop, and read all that was stored."""
        for place in (0, 1):
            self.kill(place)
        for running in self.writers:
            running.kill()
            running.communicate()
        with DiskTier(self.folder, capacity=CAPACITY) as tier:
            for key in sorted(self.held):
                found = tier.get(key)
                self.counts["lost"] += found is None
                self.counts["wrong"] += found is not None and found != content(key)

    def flip(self, bits: int) -> int:
        """Flip bits of the segments; how many pages come back wrong."""
        for _ in range(bits):
            path = self.dice.choice(sorted(self.folder.glob("*.seg")))
            with path.open("r+b") as file:
                at = self.dice.randrange(path.stat().st_size)
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1 << self.dice.randrange(8)]))
        with warnings.catch_warnings(), DiskTier(self.folder, capacity=CAPACITY) as tier:
            warnings.simplefilter("ignore")
            found = [(key, tier.get(key)) for key in tier.keys()]  # noqa: SIM118 (a tier is no mapping)
        return sum(data is not None and data != content(key) for key, data in found)


def fuzz(seconds: float, seed: int) -> dict[str, int]:
    """Mutate pages, half of them with a checksum that is right again."""
    dice = random.Random(seed)
    tensors = {"keys": torch.randn(2, 2, 8, 16), "values": torch.randn(2, 2, 8, 16).half()}
    facts = pages.PageFacts(model="m", dtype="float32", codec="raw", start=0, stop=8)
    page = pages.encode(tensors, facts)
    counts = {"pages tried": 0, "refused": 0, "signed anew and readable": 0, "broken and accepted": 0}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        broken, signed = bytearray(page), dice.random() < 0.5
        for _ in range(dice.randrange(1, 8)):
            at, width = dice.randrange(len(broken) + 1), dice.randrange(9)
            if dice.random() < 0.3:  # a length field, or the header
                at = dice.randrange(300)
            match dice.randrange(4):
                case 0:
                    broken[at : at + width] = dice.randbytes(width)
                case 1:
                    broken[at:at] = dice.randbytes(width)
                case 2:
                    del broken[at : at + width]
                case _:
                    broken[at:at] = broken[: dice.randrange(len(broken) + 1)][-200:]
        if signed and len(broken) > 54:
            head = struct.unpack_from("<8sHIQ", broken)[2]
            rest = max(len(broken) - 22 - head - 32, 0)
            if dice.random() < 0.7:
                struct.pack_into("<Q", broken, 14, rest)
            broken[-32:] = hashlib.sha256(broken[:-32]).digest()
        counts["pages tried"] += 1
        try:
            pages.decode(bytes(broken))
            counts["signed anew and readable" if signed else "broken and accepted"] += bytes(broken) != page
        except StoreError:
            counts["refused"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--fuzz-seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.writer:
        folder, name, seed, place = given.writer
        writer(folder, name, int(seed), place == "1")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        fire = Fire(folder, given.seed)
        while fire.counts["kills"] < given.kills or fire.counts["operations"] < given.operations:
            time.sleep(fire.dice.uniform(0.5, 3.0))
            fire.kill(fire.dice.randrange(2))
        fire.end()
        flipped = fire.flip(200)
    for name, count in fire.counts.items():
        print(f"{name:28}{count:>10,}")
    print(f"{'pages held in the end':28}{len(fire.held):>10,}")
    print(f"{'wrong after 200 bit flips':28}{flipped:>10,}")
    found = fuzz(given.fuzz_seconds, given.seed)
    for name, count in found.items():
        print(f"{name:28}{count:>10,}")
    bad = flipped + sum(fire.counts[name] for name in ("wrong", "lost", "damaged after a kill"))
    sys.exit(int(bad + found["broken and accepted"] > 0))


if __name__ == "__main__":
    main()
