"""KV records round-trip, flatten for --json, and damaged ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.records.diffusion import read_runs
from tenuto.records.kv import KVRun, Score, read_kv_runs, write_kv_run
from tenuto.records.timing import Timing

RUN = KVRun(
    policy="adakv+kivi:bits=4",
    budget="keep=0.25",
    context=512,
    model="tiny",
    fingerprint="f",
    settings={"examples": 2},
    versions={"tenuto": "0"},
    device="CPU",
    scores={
        "niah_single": Score(
            value=0.5, interval=(0.4, 0.6), count=2, unit="accuracy", loss=0.5, loss_interval=(0.4, 0.6)
        ),
        "perplexity": Score(value=9.0, interval=(8.0, 10.0), count=2, unit="perplexity"),
    },
    bytes_held=250,
    bytes_full=1000,
    peak_bytes=300,
    ttft=Timing(seconds=(1.0, 3.0, 2.0), baseline_seconds=(1.0, 1.5, 2.0)),
    decode=Timing(seconds=(0.01, 0.02, 0.04), baseline_seconds=(0.02, 0.02, 0.02)),
    heads=[[0.25, 0.25]],
    survivors=[[1.0, 0.0]],
)
KEYS = {
    "policy", "budget", "context", "task", "score", "bytes_held", "bytes_full", "ttft_s", "decode_cpu_ms", "peak_bytes",
}  # fmt: skip


def test_round_trip_and_order(tmp_path: Path) -> None:
    runs = [
        replace(RUN, policy="none", budget="full", scores={}),
        replace(RUN, budget="keep=0.1", bytes_held=100),
        RUN,
        replace(RUN, policy="none", budget="full", context=1024),
    ]
    for run in reversed(runs):
        write_kv_run(run, tmp_path)
    assert read_kv_runs(tmp_path) == runs
    assert read_runs(tmp_path) == []


def test_rows() -> None:
    rows = RUN.rows()
    assert [row["task"] for row in rows] == ["niah_single", "perplexity"]
    assert all(set(row) >= KEYS for row in rows)
    assert rows[0]["score"] == 0.5
    assert rows[1]["unit"] == "perplexity"
    assert (rows[0]["ttft_s"], rows[0]["decode_cpu_ms"]) == (2.0, 20.0)
    assert RUN.held == 0.25
    (bare,) = replace(RUN, scores={}).rows()
    assert bare["task"] is None
    assert set(bare) >= KEYS


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = write_kv_run(RUN, tmp_path)
    whole = path.read_text()
    for damaged in (whole[:100], "[]", json.dumps({**json.loads(whole), "colour": 1}), whole.replace("interval", "i")):
        path.write_text(damaged)
        with pytest.raises(InputError, match="kv-adakv"):
            read_kv_runs(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_kv_runs(tmp_path / "none")
