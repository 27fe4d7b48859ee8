"""``tenuto bench shards`` starts ranks and records what they found; ``tenuto calibrate shards`` fits a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tenuto.bench.shards.bench import ShardingJob, measure
from tenuto.cli import main
from tenuto.errors import InputError, PolicyError, StoreError
from tenuto.records.shards import read_shards_runs

pytestmark = pytest.mark.processes

MIXTURE = ["--experts", "4", "--top-k", "2"]
SHORT = ["--context", "60", "--tokens", "6", "--page", "4", "--window", "4"]


def tenuto(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_calibrate_then_measure_pairs(tiny_language: Path, tmp_path: Path) -> None:
    profile, out = tmp_path / "pairs.safetensors", tmp_path / "out"
    made = tenuto("calibrate", "shards", "--model", tiny_language, *MIXTURE, "--tokens", 100, "--out", profile)
    assert made.exit_code == 0 and "Profile for affinity, 1 layers" in made.output, made.output
    pairs = ["--placement", "round_robin,expert", "--selector", "all,affinity", "--keep", 0.3, "--profile", profile]
    options = ["--model", tiny_language, *MIXTURE, *SHORT, *pairs, "--out", out, "--json"]
    done = tenuto("bench", "shards", *options)
    assert done.exit_code == 0, done.output
    rows = {row["policy"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["none", "round_robin, all", "round_robin, affinity", "expert, all", "expert, affinity"]
    page = 2 * 2 * 4 * 2 * 2 * 8 * 4
    for name, row in rows.items():
        if name.endswith("all"):
            assert row["logit_gap"] < 1e-4 and row["same"] == 1 and abs(row["loss"]) < 1e-5 and row["read"] == 1
            assert row["bytes_per_collective"] == 2 * 4 * (8 * 4 + 4) and row["collectives"] == 2 * 6
        if name.endswith("affinity"):
            assert 0.15 < row["read"] < 0.31 and row["kl"] > 0 and 0 < row["dropped"] < 1 and row["logit_gap"] > 1e-4
    assert all(abs(held - rows["none"]["bytes_full"] / 2) <= page for held in rows["round_robin, all"]["bytes_held"])
    runs = read_shards_runs(out)
    assert [run.policy for run in runs] == sorted(
        rows, key=lambda name: (name != "none", name.split(", ")[0], "aff" in name)
    )
    assert all(run.row() == {**rows[run.policy], "command": run.command} for run in runs)
    other = tenuto(
        "bench", "shards", "--model", tiny_language, "--experts", 2, "--top-k", 1, *SHORT, *pairs[2:], "--ranks", 1
    )
    assert other.exit_code == 2 and "Calibrate again: tenuto calibrate shards" in " ".join(other.output.split())


def test_codecs_and_schedules_show_in_the_books(tiny_language: Path) -> None:
    words = ["--model", tiny_language, *SHORT[:4], "--page", 4, "--ranks", 1, "--context", 200, "--json"]
    runs = [
        json.loads(tenuto("bench", "shards", *words, *more).stdout)[1:]
        for more in (
            ["--codec", "raw,int8"],
            ["--resident", 0.4],
            ["--resident", 0.4, "--lossy", "--utility", "streaming_llm"],
        )
    ]
    (plain, coded), (below,), (lossy,) = runs
    assert coded["policy"] == "round_robin, all, int8" and coded["bytes_held"][0] < 0.8 * plain["bytes_held"][0]
    assert below["pages_fetched"] > 0 and below["stall_s"] > 0 and below["bytes_below"][0] > 0
    assert below["logit_gap"] < 1e-4 and below["dropped"] == 0
    assert lossy["tokens_deleted"] > 0 and lossy["policy"].endswith(
        "streaming_llm, 0.4 of full pages stay, others deleted"
    )
    assert lossy["bytes_below"] == [0] and lossy["tokens_held"] < plain["tokens_held"]


def test_a_rank_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Rank \d stopped"):
        measure(ShardingJob(model=str(tmp_path)))
    with pytest.raises(PolicyError, match="round_robin"):
        ShardingJob(model="x", placements=("round",))
    with pytest.raises((InputError, PolicyError), match="centroid|page_summary"):
        ShardingJob(model="x", selectors=("centroids",))
    with pytest.raises(InputError, match="int4"):
        ShardingJob(model="x", codecs=("int3",))
    with pytest.raises(InputError, match="tenuto calibrate shards"):
        ShardingJob(model="x", selectors=("affinity",))
