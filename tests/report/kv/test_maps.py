from __future__ import annotations

import re

import pytest

from tenuto.report.kv.maps import kept_map, shade


def test_each_cell_is_where_it_was_and_as_dark_as_its_share() -> None:
    svg = kept_map([[0.25, 1.0], [0.25, 0.0]], [], "a<b")
    found = re.findall(r'fill-opacity="([\d.]+)" d="([^"]+)"><title>([^<]*)', svg)
    (quarter, low, told), (full, high, _) = found
    assert (quarter, full, told) == ("0.50", "1.00", "about 25\u00a0% kept")
    assert low.count("M") == 2  # one head, two layers
    assert [float(path.split()[0][1:]) for path in (low, high)] == sorted(float(p.split()[0][1:]) for p in (low, high))
    assert 'aria-label="a&lt;b kept 37.5\u00a0% of the context per layer and KV head on average."' in svg


def test_both_maps_stand_side_by_side_with_axes() -> None:
    svg = kept_map([[0.5, 0.5]] * 3, [[0.1] * 8] * 3, "a")
    assert re.findall(r'class="axis"[^>]*>([^<]*)', svg) == ["KV head", "layer", "position in the context, %"]
    left, right = re.findall(r'<rect class="compute" x="([\d.]+)" y="8" width="([\d.]+)"', svg)
    assert float(left[0]) + float(left[1]) < float(right[0])
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])  # type: ignore[index]
    assert float(right[0]) + float(right[1]) <= width


def test_equal_neighbours_are_one_rectangle() -> None:
    assert kept_map([], [[0.5] * 32], "a").count("h-") == 1


@pytest.mark.parametrize(("heads", "survivors"), [([], []), ([[]], [[], []])])
def test_nothing_recorded_nothing_drawn(heads: list[list[float]], survivors: list[list[float]]) -> None:
    assert kept_map(heads, survivors, "a") == ""


def test_a_large_model_stays_small() -> None:
    grid = [[(7 * i + j) % 97 / 97 for j in range(64)] for i in range(80)]
    assert len(kept_map(grid, grid, "a")) < 400_000


def test_shades_rise() -> None:
    assert [shade(v) for v in (0.0, 0.01, 0.25, 1.0)] == [0.0, 0.1, 0.5, 1.0]
