"""What is compared: each system computes some prompts in one process and is asked for them again in others."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_tiers.client import CPU, connector, engine

__all__ = ["SYSTEMS", "Answer", "Bench"]

WARM_UP = list(range(100, 140))
GIB = 2**30


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

    def ask(
        self, row: str, tiers: dict[str, Any] | None, python: Path, *, again: str = "", settle: float = 0.0
    ) -> list[Answer]:
        """Every prompt once in a new process, and for the row ``again`` once more in the same one; ``settle``: seconds
        to let it live after that, so that it can store."""
        given = {"model": str(self.model), "dtype": "bfloat16", "block_size": self.block, "connector": tiers}
        found = []
        with engine(python, given, self.out / "engines.log") as side:
            side.ask(WARM_UP)
            for name in (row, again) if again else (row,):
                for number, ids in enumerate(self.prompts):
                    told = side.ask(ids)
                    kept = {field: told[field] for field in ("seconds", "cached", "logprobs")}
                    found.append(Answer(row=name, round=self.round, prompt=number, **kept))
            if settle:  # an engine hands over what it has computed in the steps that follow
                side.ask(WARM_UP, 8, settle)
        return found

    def empty_valkey(self) -> None:
        self._command(b"FLUSHALL\r\n")

    def _command(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.valkey)) as line:
            line.sendall(command)
            return line.recv(1 << 16)

    def folder(self, name: str) -> Path:
        """An empty folder."""
        place = self.out / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place


def plain(bench: Bench) -> list[Answer]:
    """vLLM alone."""
    return bench.ask("vLLM, cold", None, bench.vllm, again="vLLM, same process")


def tenuto(codec: str) -> Callable[[Bench], list[Answer]]:
    """A process that stores on disk and on the server, one that reads from disk, one from the server."""

    def run(bench: Bench) -> list[Answer]:
        bench.empty_valkey()
        folder = bench.folder(f"store-{codec}")
        disk, server = f"disk:{folder}?max=4GiB", f"redis://127.0.0.1:{bench.valkey}/0"
        name = f"tenuto {codec}"
        found = bench.ask(f"{name}, first process", connector([disk, server], codec), bench.vllm, settle=10.0)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / len(bench.prompts)
        rows = [(f"{name}, disk", disk), (f"{name}, Valkey", server)]
        for row, address in rows[:: 1 if bench.round % 2 else -1]:
            for told in bench.ask(row, connector(address, codec), bench.vllm):
                found.append(Answer(**_fields(told) | {"stored": size}))
        shutil.rmtree(folder)
        return found

    return run


def lmcache(bench: Bench) -> list[Answer]:
    """LMCache's server beside the engine: a second process with the same server, and with one that was started anew
    over its file store, and over Valkey."""
    if bench.lmcache is None:
        return []
    bench.empty_valkey()
    folder = bench.folder("store-lmcache")
    stores = {
        "disk": {"type": "fs", "base_path": str(folder)},
        "Valkey": {"type": "resp", "host": "127.0.0.1", "port": bench.valkey},
    }
    found = []
    for place, store in stores.items():
        with _lmcache_server(bench, bench.lmcache, store) as tiers:
            first = bench.ask("LMCache, first process", tiers, bench.lmcache, settle=10.0)
            found += first if place == "disk" else []
            if place == "disk":
                found += bench.ask("LMCache, its server's memory", tiers, bench.lmcache)
        with _lmcache_server(bench, bench.lmcache, store) as tiers:
            found += bench.ask(f"LMCache, {place}", tiers, bench.lmcache)
    shutil.rmtree(folder)
    return found


def _fields(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in Answer.__slots__}


def _free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port: int = line.getsockname()[1]
        return port


@contextmanager
def _lmcache_server(bench: Bench, python: Path, store: dict[str, Any]) -> Iterator[dict[str, Any]]:
    port, web = _free_port(), _free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--http-port", str(web), "--chunk-size", str(bench.block)]
    options += ["--l1-size-gb", "1", "--eviction-policy", "LRU", "--supported-transfer-mode", "auto"]
    command = [str(python.with_name("lmcache")), "server", *options, "--l2-adapter", json.dumps(store)]
    with (bench.out / "lmcache.log").open("a") as log:
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
        time.sleep(3)  # it writes behind
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


SYSTEMS: dict[str, Callable[[Bench], list[Answer]]] = {
    "vllm": plain,
    "raw": tenuto("raw"),
    "zstd": tenuto("zstd"),
    "int8": tenuto("int8"),
    "lmcache": lmcache,
}
