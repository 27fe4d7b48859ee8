"""What is compared: each system computes some prompts in one process and is asked for them in others."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_tiers.client import CPU, Engine, connector, engine

__all__ = ["COLD", "SYSTEMS", "Answer", "Bench", "compare"]

COLD = "vLLM, cold"
WARM_UP = list(range(100, 140))
SETTLE = 10.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one row answered to one prompt: seconds to the first token, log-probabilities of the likeliest first tokens,
    prompt tokens that were not computed; stored: bytes in the store behind the row, for each prompt."""

    row: str
    round: int
    prompt: int
    seconds: float
    cached: int
    logprobs: dict[str, float]
    stored: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A row that is asked for prompts which another process has stored: its vLLM's connector and interpreter; stored:
    bytes in the store, for each prompt."""

    row: str
    tiers: dict[str, Any] | None
    python: Path
    stored: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One round: its prompts ``[prompts][tokens]``, where to keep things, and what runs the engines."""

    round: int
    prompts: list[list[int]]
    model: Path
    block: int
    out: Path
    vllm: Path
    lmcache: Path | None
    valkey: int
    stores: Sequence[str]

    def start(self, tiers: dict[str, Any] | None, python: Path) -> AbstractContextManager[Engine]:
        """An engine in a new process."""
        given = {"model": str(self.model), "dtype": "bfloat16", "block_size": self.block, "connector": tiers}
        return engine(python, given, self.out / "engines.log")

    def answer(self, row: str, side: Engine, prompt: int, stored: float | None = None) -> Answer:
        """One prompt."""
        told = side.ask(self.prompts[prompt])
        kept = {field: told[field] for field in ("seconds", "cached", "logprobs")}
        return Answer(row=row, round=self.round, prompt=prompt, stored=stored, **kept)

    def store(self, row: str, tiers: dict[str, Any], python: Path) -> list[Answer]:
        """Every prompt in a process that ends when it has stored them."""
        with self.start(tiers, python) as side:
            side.ask(WARM_UP)
            found = [self.answer(row, side, prompt) for prompt in range(len(self.prompts))]
            side.ask(WARM_UP, 8, SETTLE)  # an engine hands over what it has computed in the steps that follow
        return found

    def folder(self, name: str) -> Path:
        """An empty folder."""
        place = self.out / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place


Prepared = tuple[list[Answer], list[Reader]]


def plain(bench: Bench, stack: ExitStack) -> Prepared:
    """vLLM alone."""
    return [], [Reader(row=COLD, tiers=None, python=bench.vllm)]


def tenuto(codec: str) -> Callable[[Bench, ExitStack], Prepared]:
    """A process that stores on disk and on the server, one that reads from disk, one from the server."""

    def prepare(bench: Bench, stack: ExitStack) -> Prepared:
        folder = bench.folder(f"store-{codec}")
        disk, server = f"disk:{folder}?max=4GiB", f"redis://127.0.0.1:{bench.valkey}/0"
        first = bench.store(f"tenuto {codec}, first process", connector([disk, server], codec), bench.vllm)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / len(bench.prompts)
        places = {"disk": disk, "Valkey": server}
        return first, [
            Reader(row=f"tenuto {codec}, {place}", tiers=connector(address, codec), python=bench.vllm, stored=size)
            for place, address in places.items()
            if place in bench.stores
        ]

    return prepare


def lmcache(bench: Bench, stack: ExitStack) -> Prepared:
    """LMCache's server beside the engine: a second process with the same server, and with one that was started anew
    over its file store, and over Valkey."""
    if bench.lmcache is None:
        return [], []
    stores = {
        "disk": {"type": "fs", "base_path": str(bench.folder("store-lmcache"))},
        "Valkey": {"type": "resp", "host": "127.0.0.1", "port": bench.valkey},
    }
    first: list[Answer] = []
    readers = []
    for place, store in stores.items():
        if place not in bench.stores:
            continue
        alive = stack.enter_context(_lmcache_server(bench.out, bench.lmcache, bench.block, store))
        first += bench.store(f"LMCache, first process ({place})", alive, bench.lmcache)
        anew = stack.enter_context(_lmcache_server(bench.out, bench.lmcache, bench.block, store))
        if place == "disk":
            readers.append(Reader(row="LMCache, its server's memory", tiers=alive, python=bench.lmcache))
        readers.append(Reader(row=f"LMCache, {place}", tiers=anew, python=bench.lmcache))
    return first, readers


SYSTEMS: dict[str, Callable[[Bench, ExitStack], Prepared]] = {
    "vllm": plain,
    "raw": tenuto("raw"),
    "zstd": tenuto("zstd"),
    "int8": tenuto("int8"),
    "lmcache": lmcache,
}


def compare(bench: Bench, systems: Sequence[str]) -> list[Answer]:
    """Store with every system; then start all that read, and ask them in turn, prompt by prompt. At last each is asked
    once more, when it has the prompt in vLLM's own prefix cache: the least that any tier could take there and then."""
    found: list[Answer] = []
    with ExitStack() as stack:
        readers: list[Reader] = []
        for name in systems:
            stored, more = SYSTEMS[name](bench, stack)
            found += stored
            readers += more
        sides = [(reader, stack.enter_context(bench.start(reader.tiers, reader.python))) for reader in readers]
        for _, side in sides:
            side.ask(WARM_UP)
        for prompt in range(len(bench.prompts)):
            turn = (prompt + bench.round) % len(sides)
            order = sides[turn:] + sides[:turn]
            found += [bench.answer(reader.row, side, prompt, reader.stored) for reader, side in order]
            found += [bench.answer(f"{reader.row}, again", side, prompt) for reader, side in order]
    for folder in bench.out.glob("store-*"):
        shutil.rmtree(folder)
    return found


def _free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port: int = line.getsockname()[1]
        return port


@contextmanager
def _lmcache_server(out: Path, python: Path, block: int, store: dict[str, Any]) -> Iterator[dict[str, Any]]:
    port, web = _free_port(), _free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--http-port", str(web), "--chunk-size", str(block)]
    options += ["--l1-size-gb", "1", "--eviction-policy", "LRU", "--supported-transfer-mode", "auto"]
    command = [str(python.with_name("lmcache")), "server", *options, "--l2-adapter", json.dumps(store)]
    with (out / "lmcache.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | CPU)
    try:
        _wait_for(port, process)
        extra = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
        yield {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": extra,
        }
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("LMCache's server did not start; lmcache.log holds what it said.")
