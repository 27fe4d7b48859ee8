"""Our end of the pipe to :mod:`vllm_tiers.engine`; imports nothing but the standard library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["CPU", "Engine", "connector", "engine"]

SIDE = Path(__file__).with_name("engine.py")
CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def connector(address: str | list[str], codec: str, pool: int = 2**28) -> dict[str, Any]:
    """vLLM's ``kv_transfer_config`` for a tier of ours; ``pool``: bytes of host memory before it."""
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "spec_name": "TenutoTieringSpec",
            "cpu_bytes_to_use": pool,
            "eviction_policy": "s3fifo",
            "secondary_tiers": [{"type": "tenuto", "address": address, "codec": codec}],
        },
    }


class Engine:
    """An engine in another process.

    Attributes:
        started: seconds it took to start.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        self.started = float(self._read()["started"])

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"The engine has ended without an answer; {self.log} holds what it said.")
        told: dict[str, Any] = json.loads(line)
        return told

    def ask(self, ids: list[int], tokens: int = 1, pause: float = 0.0) -> dict[str, Any]:
        """A greedy completion; ``pause``: seconds to wait after it, so that what is stored behind it is stored."""
        if self.process.stdin:
            self.process.stdin.write(json.dumps({"ids": ids, "tokens": tokens, "pause": pause}) + "\n")
            self.process.stdin.flush()
        return self._read()


@contextmanager
def engine(python: Path | str, given: Mapping[str, Any], log: Path) -> Iterator[Engine]:
    """An engine until the block ends; what it says goes to ``log``.

    Raises:
        RuntimeError: it does not end as it should.
    """
    with (
        log.open("a") as said,
        subprocess.Popen(
            [str(python), str(SIDE), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | CPU,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Engine(process, log)
            if process.stdin:
                process.stdin.close()
            if process.wait(120):
                raise RuntimeError(f"The engine ended with {process.returncode}; {log} holds what it said.")
        finally:
            with suppress(ProcessLookupError):  # an engine that fails leaves its workers
                os.killpg(process.pid, signal.SIGKILL)
