"""The part about stores of prefixes: what each row shows, the figures above it, and damage by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.records.reuse import ReuseRun, read_reuse_runs, write_reuse_run
from tenuto.report import write_report
from tenuto.report.reuse.check import check_reuse
from tenuto.report.reuse.page import reuse_part
from tenuto.report.reuse.table import COLUMNS, reuse_rows

RAW = ReuseRun(
    store="disk",
    codec="raw",
    context=1500,
    restored=1488,
    bytes_stored=8 * 2**20,
    bytes_full=16 * 2**20,
    recompute_s=6.0,
    restore_s=0.5,
    speedup=12.0,
    speedup_low=11.0,
    speedup_high=13.5,
    cpu_speedup=20.0,
    logits_error=2e-5,
    same_text=True,
    perplexity=10.0,
    perplexity_computed=10.0,
    model="tiny",
    fingerprint="f" * 16,
    settings={},
    versions={"torch": "2"},
    device="CPU",
    command="tenuto bench reuse",
)
SMALL = replace(RAW, codec="int8", bytes_stored=2**20, speedup=9.0, restore_s=0.66, logits_error=0.3, perplexity=10.1)
OTHER = replace(RAW, codec="int4", bytes_stored=2**19, speedup=30.0, same_text=False)


def test_cells_say_what_was_measured() -> None:
    cells = {column.title: cell for column, cell in zip(COLUMNS, reuse_rows([SMALL])[0].cells, strict=True)}
    assert (cells["Speed-up"].text, cells["Speed-up"].note) == ("9.00×", "11.00\u00a0to\u00a013.50")
    assert (cells["Load"].text, cells["Load"].note) == ("660\u00a0ms", "computed: 6.0\u00a0s")
    assert (cells["Loaded"].text, cells["Loaded"].note) == ("1,488", "of 1,500")
    assert (cells["Stored"].text, cells["Stored"].note) == ("1.0\u00a0MiB", "6.2\u00a0% of the cache")
    assert cells["Perplexity"].note == "+1.00\u00a0%" and cells["Largest |Δ logit|"].value == 0.3


def test_records_make_a_part_beside_others(tmp_path: Path) -> None:
    """The best of those that said the same; the largest in bytes first."""
    for run in (SMALL, OTHER, RAW):
        write_reuse_run(run, tmp_path)
    runs = read_reuse_runs(tmp_path)
    assert runs == [RAW, SMALL, OTHER]
    part = reuse_part(runs, tmp_path)
    shown = {headline.title: (headline.value, headline.policy) for headline in part["headlines"]}
    assert shown["Fastest"] == ("12.00×", "disk raw") and shown["Smallest"] == ("6.2\u00a0%", "disk int8")
    assert [row["codec"] for row in json.loads(part["records"])] == ["raw", "int8", "int4"]
    html = write_report(tmp_path).path.read_text()
    assert "its seconds are under Load" in html and "no baseline Run" not in html
    assert all(text in html for text in ("disk int4", "1,488", "tenuto bench reuse", "other"))


def test_damage_is_named(tmp_path: Path) -> None:
    for changed, said in (({"speedup": 0}, "speedup"), ({"same_text": 1}, "same_text"), ({"codec": 3}, "codec")):
        with pytest.raises(InputError, match=said):
            check_reuse(replace(RAW, **changed))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="several models"):
        reuse_part([RAW, replace(SMALL, fingerprint="e" * 16)], tmp_path)
    (tmp_path / "store-x.json").write_text("{}")
    with pytest.raises(InputError, match="says no family"):
        write_report(tmp_path)
