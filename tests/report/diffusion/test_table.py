from __future__ import annotations

from collections.abc import Callable

from tenuto.records.diffusion import Run
from tenuto.report.diffusion.table import COLUMNS, table_rows


def test_numbers_and_front(make: Callable[..., Run]) -> None:
    runs = [
        make("none"),
        make("fast:n=1", speedup=3.0, psnr=22.0),
        make("good:n=1", speedup=1.5, psnr=33.0),
        make("poor:n=1", speedup=1.4, psnr=32.0),
        make("slow:n=1", speedup=0.9, psnr=50.0),
        make("withheld:n=1", speedup=9.0, psnr=60.0, withheld="nothing was reused"),
        make("unknown:n=1", speedup=9.0, psnr=None),
    ]
    rows = table_rows(runs)
    assert [row.number for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row.run.policy for row in rows if row.front] == ["fast:n=1", "good:n=1"]


def test_a_withheld_speedup_is_not_shown_even_if_there_is_one(make: Callable[..., Run]) -> None:
    cell = table_rows([make("a", speedup=2.0, withheld="nothing was reused")])[0].cells[0]
    assert (cell.text, cell.note, cell.value) == ("—", "withheld: nothing was reused", None)


def test_not_timed_is_not_withheld(make: Callable[..., Run]) -> None:
    cell = table_rows([make("a", speedup=None, speedup_range=None, timing=None)])[0].cells[0]
    assert (cell.text, cell.note) == ("—", "not timed")


def test_every_column_explains_itself() -> None:
    assert all(column.help.endswith(".") and column.note for column in COLUMNS)
