"""The part about sharded caches: what is measured is shown, what is not is a dash, damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenuto.errors import InputError
from tenuto.records.shards import ShardsRun, read_shards_runs, write_shards_run
from tenuto.report import write_report
from tenuto.report.shards.check import check_shards
from tenuto.report.shards.page import shards_part
from tenuto.report.shards.table import COLUMNS, shards_rows

BASE = ShardsRun(
    placement="none",
    selector="all",
    model="tiny",
    fingerprint="f" * 16,
    settings={"ranks": 2},
    versions={"torch": "2"},
    device="CPU",
    perplexity=10.0,
    own=10.0,
    tokens_per_s=20.0,
    own_tokens_per_s=20.0,
    bytes_held=[4096],
    bytes_full=4096,
    logit_largest=40.0,
    steps=8,
)
FULL = replace(
    BASE,
    placement="round_robin",
    logit_gap=2e-5,
    bytes_held=[2048, 2304],
    bytes_sent=[960, 960],
    collectives=16,
    tokens_read=100,
    tokens_held=100,
    pages_read=10,
    pages_held=10,
    tokens_per_s=10.0,
)
FEW = replace(
    FULL,
    placement="expert",
    selector="router",
    perplexity=11.0,
    kl=0.25,
    same=0.75,
    tokens_read=13,
    pages_read=2,
    dropped=0.4,
    balance=1.25,
)
BELOW = replace(
    FEW, schedule="lru, 0.5 of full pages stay", dropped=None, bytes_below=[512, 256], pages_fetched=7, stall_s=0.5
)


def cells(run: ShardsRun) -> dict[str, Any]:
    return {column.title: cell for column, cell in zip(COLUMNS, shards_rows([run])[0].cells, strict=True)}


def test_cells_say_what_was_measured() -> None:
    full, few, below = cells(FULL), cells(FEW), cells(BELOW)
    assert full["Held"].text == "2.0\u00a0KiB, 2.2\u00a0KiB" and full["Held"].value == 2304
    assert "106.2" in full["Held"].note and full["Sent"].text == "60\u00a0B" and "16 collectives" in full["Sent"].note
    assert full["Tokens/s"].note == "0.50×" and full["Largest |Δ logit|"].note == "of 40.0"
    assert few["Perplexity"].note == "+10.0\u00a0%" and few["Read"].text == "13.0\u00a0%" and few["ε"].text == "0.400"
    assert few["Read"].note == "2 of 10 pages" and few["Load"].text == "1.25" and "75.0" in few["KL"].note
    assert few["Stall"].value is None and below["Stall"].note == "7 pages fetched"
    assert below["ε"].value is None and below["Held"].more == "below: 512\u00a0B, 256\u00a0B"
    assert cells(replace(FEW, tokens_deleted=1234))["Held"].more == "1,234 tokens deleted"
    assert [cells(BASE)[name].value for name in ("KL", "Read", "Sent", "Load")] == [None] * 4


def test_part_and_page(tmp_path: Path) -> None:
    for run in (BELOW, FEW, FULL, BASE):
        write_shards_run(run, tmp_path)
    runs = read_shards_runs(tmp_path)
    assert [run.policy for run in runs] == [run.policy for run in (BASE, FEW, BELOW, FULL)]
    part = shards_part(runs, tmp_path)
    assert part["grid"] == {
        "selectors": ["router", "all"],
        "rows": [("expert", ["0.2500", "—"]), ("round_robin", ["—", "0.0000"])],
    }
    shown = {headline.title: headline.value for headline in part["headlines"]}
    assert shown["Exactness"] == "2.0e-05" and shown["Least on the fullest rank"] == "56.2\u00a0%"
    html = write_report(tmp_path).path.read_text()
    for text in (
        "round_robin",
        "router",
        "mass left out",
        "2 of 10 pages",
        "lru,<wbr> 0.5 of full pages stay",
        "7 pages fetched",
    ):
        assert text in html, text
    assert json.loads(part["records"])[1]["policy"] == "expert, router"


def test_damage_is_named(tmp_path: Path) -> None:
    for changed, said in (
        ({"dropped": "x"}, "dropped"),
        ({"bytes_held": []}, "bytes_held"),
        ({"perplexity": 0}, "perplexity"),
        ({"kl": -1}, "kl"),
    ):
        with pytest.raises(InputError, match=said):
            check_shards(replace(FULL, **changed))
    with pytest.raises(InputError, match="several models"):
        shards_part([BASE, replace(FULL, fingerprint="e" * 16)], tmp_path)
    (tmp_path / "moe-x.json").write_text("{}")
    with pytest.raises(InputError, match="says no family"):
        write_report(tmp_path)
