"""Several processes over gloo: as exact as one, bytes by the formula, and nothing hangs when a rank dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from ranks import PATIENCE, found, launch

from tenuto.testing.kv import TOLERANCE

pytestmark = pytest.mark.processes

LAYERS, ROWS, HEADS, WIDTH = 3, 4, 4, 16


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_one(ranks: int, tmp_path: Path) -> None:
    results = found(launch(ranks, "compare", tmp_path), tmp_path)
    for name in [name for name in results[0] if " " in name]:
        facts = [result[name] for result in results]
        assert all(f["same"] and f["gap"] <= TOLERANCE for f in facts), name
        assert all(f["collectives"] == LAYERS * 15 for f in facts), "one per layer and decoding step"
        assert all(f["bytes_sent"] == LAYERS * 15 * ROWS * HEADS * (4 * WIDTH + 4) for f in facts)
        assert sum(f["bytes_held"] for f in facts) >= facts[0]["bytes_full"]
        if "RoundRobin" in name:
            page = ROWS * LAYERS * 4 * 2 * 2 * WIDTH * 4
            assert all(abs(f["bytes_held"] - f["bytes_full"] / ranks) <= page for f in facts)
    for result in results:
        assert result["turns"]["gap"] <= TOLERANCE
        assert result["turns"]["moved"] > 0 and result["turns"]["partial"] == 0, "a long turn: keys are cheaper"
        assert result["turns"]["short"] > 0 and result["turns"]["short_moved"] == 0, "a short one: queries are"
        assert result["data_parallel"]["gap"] <= TOLERANCE
        assert result["data_parallel"]["bytes_held"] > 0
        assert result["selected"]["gap"] <= TOLERANCE
        assert abs(result["selected"]["dropped_mass"] - result["selected"]["alone"]) <= 1e-5
        assert result["selected"]["bytes_sent"] == LAYERS * 5 * 2 * HEADS * (4 * WIDTH + 4 + 4), "what is left out too"
        assert 0 < result["selected"]["tokens_read"] < 0.31 * result["selected"]["tokens_held"]
        assert result["lossy"]["gap"] <= TOLERANCE
        assert result["lossy"]["tokens_deleted"] == result["lossy"]["alone_deleted"] > 0
    assert sum(result["lossy"]["bytes_held"] for result in results) == results[0]["lossy"]["alone"]
    each = LAYERS * 5 * 2  # layers, steps, rows per rank: one gather of queries, keys, values, routers; one all-to-all
    gathered, sent = (HEADS + 2 * 2) * WIDTH * 4, ranks * HEADS * (4 * WIDTH + 4)
    assert results[0]["data_parallel"]["bytes_sent"] == each * (gathered + sent) + 2 * 5 * 2 * 4 * 4


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    for rank, said in enumerate(found(launch(2, "refuse", tmp_path), tmp_path)):
        assert "mesh is for 3 ranks and 2 were started" in said["world"]
        assert "multiple of the ranks" in said["shards"]
        assert said["placements"].startswith("AttachError") and "Expert" in said["placements"]
        assert said["models"].startswith("AttachError") and "MixtralForCausalLM" in said["models"]
        assert "different shapes" in said["lengths"], rank
        assert "rows of its own" in said["beams"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone(how: signal.Signals, tmp_path: Path) -> None:
    processes = launch(2, "write_on", tmp_path)
    try:
        start = time.monotonic()
        while not all((tmp_path / f"{rank}.begun").exists() for rank in (0, 1)):
            assert time.monotonic() - start < 600 and all(p.poll() is None for p in processes)
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(processes[1].pid, how)
        assert processes[0].wait(timeout=600) == 0
        (said,) = found(processes[:1], tmp_path)
        assert f"{PATIENCE:g} s at most" in said["said"] and said["broken"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
