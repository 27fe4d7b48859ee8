"""ShardsRuns are read as they were written, the model's own cache first."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.records.shards import ShardsRun, read_shards_runs, write_shards_run

BASE = ShardsRun(
    placement="none",
    selector="all",
    model="m",
    fingerprint="f",
    settings={"ranks": 2},
    versions={},
    device="CPU",
    perplexity=8.0,
    own=8.0,
    tokens_per_s=2.0,
    own_tokens_per_s=2.0,
    bytes_held=[64],
    bytes_full=64,
)
FEW = replace(
    BASE,
    placement="expert",
    selector="both",
    codec="int4",
    perplexity=16.0,
    bytes_sent=[300, 200],
    collectives=10,
    tokens_read=1,
    tokens_held=8,
)


def test_written_and_read(tmp_path: Path) -> None:
    plain = replace(FEW, selector="all", codec="raw", schedule="lru, 0.5 of full pages stay")
    assert len({write_shards_run(run, tmp_path) for run in (FEW, plain, BASE)}) == 3
    assert read_shards_runs(tmp_path) == [BASE, plain, FEW]
    assert [run.policy for run in (BASE, FEW)] == ["none", "expert, both, int4"]
    (tmp_path / "moe-none.json").write_text('{"task": "moe", "placement": "none", "more": 1}')
    with pytest.raises(InputError, match="more"):
        read_shards_runs(tmp_path)


def test_what_follows_from_the_numbers() -> None:
    assert FEW.loss == pytest.approx(math.log(2)) and FEW.read == 1 / 8 and FEW.sent == 30
    assert (BASE.loss, BASE.read, BASE.sent) == (0, 1, 0)
    row = FEW.row()
    assert row["loss"] == FEW.loss and row["bytes_per_collective"] == 30 and row["codec"] == "int4"
