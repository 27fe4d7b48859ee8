"""The disk tier when processes die, share, and meet a folder or disk that takes no more: real processes throughout."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import tenuto
from tenuto.tiers.disk import DiskTier

pytestmark = pytest.mark.processes

SOURCES = str(Path(tenuto.__file__).parent.parent)
START = (
    f"import sys; sys.path.insert(0, {SOURCES!r})\n"
    + """
import os, random, resource
from tenuto.errors import StoreError
from tenuto.tiers.disk import DiskTier
def page(key): return (key.encode() * 3000)[: 20 + hash_of(key) % 3000]
def hash_of(key): return sum(key.encode()) * 7919
"""
)


def hash_of(key: str) -> int:
    return sum(key.encode()) * 7919


def page(key: str) -> bytes:
    return (key.encode() * 3000)[: 20 + hash_of(key) % 3000]


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python on a text with arguments; whatever happens, the processes end with the test."""
    with ExitStack() as running:

        def process(code: str, *arguments: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", START + code, *map(str, arguments)]
            started = running.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            running.callback(started.kill)
            return started

        yield process


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


WRITER = """
tier = DiskTier(sys.argv[1], capacity=int(sys.argv[3]), segment_bytes=20_000)
run, number = sys.argv[2], 0
while True:
    key = f"{run}-{number}"
    tier.put(key, page(key))
    os.write(1, f"{key}\\n".encode())
    number += 1
"""


@pytest.mark.parametrize(("capacity", "kills"), [(1 << 30, 12), (60_000, 12)], ids=["roomy", "compacting"])
def test_a_writer_killed_at_any_moment_loses_no_committed_page(
    tmp_path: Path, start: Start, capacity: int, kills: int
) -> None:
    dice, committed = random.Random(capacity), []
    for run in range(kills):
        writer = start(WRITER, tmp_path, run, capacity)
        assert writer.stdout is not None
        committed.append(writer.stdout.readline().strip())
        time.sleep(dice.random() * 0.03)
        os.kill(writer.pid, signal.SIGKILL)
        rest, _ = writer.communicate()
        committed += [line for line in rest.split("\n")[:-1] if line]
        with DiskTier(tmp_path, capacity=capacity, segment_bytes=20_000) as tier:
            assert not list(tier.verify())
            kept = committed if capacity > 1 << 20 else committed[-5:]  # five always fit
            assert tier.get_many(kept) == [page(key) for key in kept]
            held = tier.keys()
            assert tier.get_many(held) == [page(key) for key in held]
    assert len(committed) > 3 * kills
    assert not list(tmp_path.glob("*.part"))


PLAYER = """
dice, wrong, hits, mine = random.Random(int(sys.argv[2])), 0, 0, set()
tier = DiskTier(sys.argv[1], capacity=int(sys.argv[3]), segment_bytes=20_000)
roomy, name = int(sys.argv[3]) > 1 << 20, sys.argv[2]
for step in range(int(sys.argv[4])):
    shared = dice.random() < 0.5
    key = f"shared-{dice.randrange(60)}" if shared else f"{name}-{dice.randrange(60)}"
    action = dice.random()
    if action < 0.4:
        tier.put(key, page(key))
        if not shared: mine.add(key)
    elif action < 0.9:
        data = tier.get(key)
        wrong += data not in (None, page(key))
        if roomy and not shared: wrong += (data is not None) != (key in mine)
        hits += data is not None
    elif action < 0.97:
        tier.discard(key)
        mine.discard(key)
        if not shared: wrong += tier.contains(key)
    else:
        tier.contains(key)
print(wrong, hits)
"""


@pytest.mark.parametrize("capacity", [1 << 30, 60_000], ids=["roomy", "compacting"])
def test_two_processes_on_one_folder_never_get_a_wrong_page_or_lose_one(
    tmp_path: Path, start: Start, capacity: int
) -> None:
    players = [start(PLAYER, tmp_path, seed, capacity, 2500) for seed in range(2)]
    for player in players:
        wrong, hits = map(int, finish(player).split())
        assert wrong == 0 and hits > 50
    with DiskTier(tmp_path, capacity=capacity) as tier:
        assert not list(tier.verify())
        assert tier.bytes_used() <= capacity


FULL = """
import resource
tier = DiskTier(sys.argv[1], capacity=1 << 30)
tier.put("before", b"x" * 50_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for number in range(3):
    try: tier.put(f"large-{number}", b"y" * 200_000)
    except StoreError as error: print("refused" if "was not changed" in str(error) else error)
tier.put("after", b"z" * 40_000)
print([tier.get(key) is not None for key in ("before", "large-0", "after")], len(list(tier.verify())))
"""


def test_a_disk_that_takes_no_more_loses_nothing(tmp_path: Path, start: Start) -> None:
    assert finish(start(FULL, tmp_path)).splitlines() == ["refused"] * 3 + ["[True, False, True] 0"]
    with DiskTier(tmp_path, capacity=1 << 30) as tier:
        assert tier.bytes_used() < 91_000  # of the pages refused nothing is left
        assert tier.keys() == ["before", "after"] and tier.get("after") == b"z" * 40_000


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that another user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="tenuto-store-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


READER = """
import warnings
if os.getuid() == 0: os.setuid(65534)
tier = DiskTier(sys.argv[1], capacity=1 << 30)
print(tier.get("a") == b"a" * 50, tier.contains("a"), tier.bytes_used() > 50)
for change in (lambda: tier.put("b", b""), lambda: tier.discard("a"), lambda: tier.prune(0)):
    try: change()
    except StoreError: print("refused")
with warnings.catch_warnings(record=True) as caught:
    print([tier.get("damaged") for _ in range(2)], len(caught))
print(tier.get("a") == b"a" * 50)
"""


def test_a_folder_that_may_only_be_read_serves_pages(readable: Path, start: Start) -> None:
    with DiskTier(readable, capacity=1 << 30) as tier:
        tier.put("a", b"a" * 50)
        tier.put("damaged", b"d" * 50)
    (path,) = readable.glob("*.seg")
    path.write_bytes(path.read_bytes().replace(b"dd", b"dx", 1))
    for each in readable.iterdir():
        each.chmod(0o444)
    readable.chmod(0o555)
    expected = ["True True True", *["refused"] * 3, "[None, None] 1", "True"]
    assert finish(start(READER, readable)).splitlines() == expected
