"""Curves and the plot they are drawn in."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tenuto.records.diffusion import Run
from tenuto.report.axes import marker
from tenuto.report.diffusion.curves import curves, legend
from tenuto.report.diffusion.plots import FRAME, Point, scatter
from tenuto.report.diffusion.table import table_rows
from tenuto.report.svg import ticks


@pytest.fixture
def runs(make: Callable[..., Run]) -> list[Run]:
    return [
        make("none"),
        make("a:n=2", speedup=1.5, psnr=30.0, flops_speedup=1.7),
        make("a:n=4", speedup=2.5, psnr=25.0, flops_speedup=3.0),
        make("b<i>", speedup=2.0, psnr=28.0, withheld="nothing was reused"),
        make("fewer_steps:n=5", speedup=2.0, psnr=20.0),
        make("c", speedup=2.0, psnr=None, psnr_interval=None),
    ]


def test_withheld_runs_are_named_not_drawn(runs: list[Run]) -> None:
    drawn = curves(table_rows(runs), wall_clock=True)
    assert drawn.left_out == ["3 (b<i>: no speed-up)", "5 (c: no PSNR)"]
    assert re.findall(r"<title>(\d): ", drawn.svg) == ["4", "1", "2"]
    assert drawn.svg.count('class="curve') == 2
    assert 'class="curve plain"' in drawn.svg


def test_the_flops_plot_has_its_own_numbers(runs: list[Run]) -> None:
    drawn = curves(table_rows(runs), wall_clock=False)
    assert "3.00×, 25.00 dB" in drawn.svg
    assert drawn.left_out == ["5 (c: no PSNR)"]
    assert "b&lt;i&gt;" in drawn.svg
    assert "<i>" not in drawn.svg


def test_identical_output_is_named_not_drawn(make: Callable[..., Run]) -> None:
    rows = table_rows([make("exact", psnr=100.0, psnr_interval=(100.0, 100.0)), make("a", psnr=30.0)])
    drawn = curves(rows, wall_clock=True)
    assert drawn.left_out == ["1 (exact: identical to the uncached output, at 2.00×)"]
    assert re.findall(r"<title>(\d): ", drawn.svg) == ["2"]
    assert (rows[0].cells[2].text, rows[0].cells[2].note) == ("100.00", "identical")


def test_no_points_no_plot(make: Callable[..., Run]) -> None:
    drawn = curves(table_rows([make("none"), make("a", psnr=None)]), wall_clock=True)
    assert drawn.svg == ""
    assert len(drawn.left_out) == 1


def test_faster_is_right_and_closer_is_up() -> None:
    points = [Point(number=n, method=0, title=str(n), x=x, y=y) for n, x, y in ((1, 1.2, 35.0), (2, 3.0, 20.0))]
    (x1, y1), (x2, y2) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', scatter(points, "x", "d"))
    assert 0 < float(x1) < float(x2) < FRAME.width
    assert 0 < float(y1) < float(y2) < FRAME.height


def test_one_point_is_drawn_inside() -> None:
    svg = scatter([Point(number=1, method=1, title="t", x=1.0, y=20.0)], "x", "d")
    assert all(0 <= float(v) <= FRAME.width for v in re.findall(r' (?:x|y)="(-?[\d.]+)"', svg))
    assert "nan" not in svg


def test_points_at_one_place_keep_their_numbers_apart() -> None:
    points = [Point(number=n, method=n, title="t", x=2.0, y=25.0) for n in range(4)]
    places = re.findall(r'class="number" x="([\d.]+)" y="([\d.]+)"', scatter(points, "x", "d"))
    assert len(set(places)) == 4


def test_24_methods_look_different(make: Callable[..., Run]) -> None:
    looks = [re.sub(r'(points|cx|cy|r)="[^"]*"', "", marker(n, 0, 0)) + str(n % 6) for n in range(24)]
    assert len(set(looks)) == 24
    names = [
        name for name, _ in legend(table_rows([make("none"), make("a:n=1"), make("a:n=2"), make("fewer_steps:n=2")]))
    ]
    assert names == ["a", "fewer_steps"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.9, 2.6, [1.0, 1.5, 2.0, 2.5]), (3.0, 3.0, [3.0])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == expected
