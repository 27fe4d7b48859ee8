"""``tenuto bench moe`` starts ranks, and says what they found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tenuto.cli import main
from tenuto.errors import InputError, StoreError
from tenuto.eval.sharding import ShardingJob, measure


def test_two_ranks_hold_half_each(tiny_language: Path) -> None:
    options = ["--context", "60", "--tokens", "6", "--page", "4", "--experts", "4", "--top-k", "2", "--json"]
    done = CliRunner().invoke(main, ["bench", "moe", "--model", str(tiny_language), *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [rank["rank"] for rank in found] == [0, 1]
    for rank in found:
        assert rank["same_tokens"] and rank["logit_gap"] < 1e-4
        assert abs(rank["bytes_held"] - rank["bytes_full"] / 2) <= 2 * 2 * 4 * 2 * 2 * 8 * 4
        assert rank["collectives"] == 2 * 5 and rank["bytes_sent"] == 2 * 5 * 2 * 4 * (8 * 4 + 4)


def test_a_rank_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Rank 0 stopped"):
        measure(ShardingJob(model=str(tmp_path), ranks=1))
    with pytest.raises(InputError, match="round_robin"):
        ShardingJob(model="x", placement="round")
