from __future__ import annotations

from collections.abc import Callable

import pytest

from tenuto.records.kv import KVRun, Score
from tenuto.report.diffusion.table import Cell
from tenuto.report.kv.table import budget_size, kv_columns, kv_help, kv_rows


def cell(runs: list[KVRun], row: int, title: str) -> Cell:
    names = [column.title for column in kv_columns(runs)]
    return kv_rows(runs)[row].cells[names.index(title)]


def test_every_number_of_a_row(kv: Callable[..., KVRun]) -> None:
    runs = [kv("none"), kv("snapkv")]
    held, single = cell(runs, 1, "Held"), cell(runs, 1, "niah_single")
    assert (held.text, held.note, held.value) == ("25.0\u00a0%", "2.0\u00a0MiB", 0.25)
    assert (single.text, single.note, single.more, single.worse) == (
        "90.0",
        "85.0\u00a0to\u00a095.0",
        "loss 5.0, 2.5\u00a0to\u00a07.5",
        True,
    )
    decode, ttft = cell(runs, 1, "Decode"), cell(runs, 1, "TTFT")
    assert (decode.text, decode.note, decode.more) == ("16.0\u00a0ms", "1.28×, n=5", "1.19\u00a0to\u00a01.38")
    assert (ttft.text, ttft.note) == ("800\u00a0ms", "1.02×, n=5")
    peak = cell(runs, 1, "Peak cache")
    assert (peak.text, peak.note) == ("8.0\u00a0MiB", "100.0\u00a0% of full")
    assert (cell(runs, 0, "Decode").note, cell(runs, 0, "niah_single").more) == ("reference", "reference")


def test_columns_are_the_tasks_of_the_folder(kv: Callable[..., KVRun], score: Callable[..., Score]) -> None:
    runs = [kv("none", scores={"b": score(count=40)}), kv("x", scores={"b": score(count=7), "a": score()})]
    columns = kv_columns(runs)
    assert [c.title for c in columns] == ["Budget", "Context", "Held", "b", "a", "TTFT", "Decode", "Peak cache"]
    assert [c.note for c in columns][3:5] == ["accuracy, %, n=7\u00a0to\u00a040", "accuracy, %, n=40"]
    assert (cell(runs, 0, "a").text, cell(runs, 0, "a").value) == ("—", None)
    assert [c.title for c in kv_help(columns)] == ["Budget", "Context", "Held", "b, a", "TTFT", "Decode", "Peak cache"]
    assert all(c.help.endswith(".") for c in columns)


def test_withheld_rows_have_dashes_and_their_reason(kv: Callable[..., KVRun]) -> None:
    runs = [kv("none"), kv("kvzip", withheld="no chat template")]  # with numbers all the same
    row = kv_rows(runs)[1]
    assert row.note == "withheld: no chat template"
    assert [c.text for c in row.cells[:2]] == ["keep=0.25", "1,024"]
    assert {(c.text, c.value) for c in row.cells[2:]} == {("—", None)}


def test_nothing_measured_is_not_zero(kv: Callable[..., KVRun]) -> None:
    runs = [kv("x", bytes_held=0, bytes_full=0, peak_bytes=0, ttft=None, decode=None, scores={})]
    assert [(c.text, c.note) for c in kv_rows(runs)[0].cells[2:]] == [("—", "not measured")] * 4


def test_baselines_are_number_0(kv: Callable[..., KVRun]) -> None:
    runs = [kv("none", context=512), kv("a", context=512), kv("none"), kv("a"), kv("b")]
    assert [row.number for row in kv_rows(runs)] == [0, 1, 0, 2, 3]


@pytest.mark.parametrize(
    "rising",
    [
        ["keep=0.05", "keep=0.25", "keep=1.0", "full"],
        ["tokens=64", "tokens=512"],
        ["bytes=100", "bytes=900KiB", "bytes=2MiB", "bytes=1GiB"],
    ],
)
def test_budgets_sort_by_their_amount(kv: Callable[..., KVRun], rising: list[str]) -> None:
    assert sorted(set(rising), key=budget_size) == rising
    values = [row.cells[0].value for row in kv_rows([kv("x", budget=text) for text in rising])]
    assert values == sorted(values)
