from __future__ import annotations

import pytest

from tenuto.report.axes import Scale, scale


def test_a_logarithmic_scale_has_equal_factors_equally_far() -> None:
    up = Scale(10.0, 1000.0, 0.0, 200.0, log=True)
    assert [round(up(v), 6) for v in (10.0, 100.0, 1000.0)] == [0.0, 100.0, 200.0]
    assert up.ticks(6) == [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]


def test_a_short_logarithmic_scale_has_plain_numbers() -> None:
    assert Scale(12.0, 15.0, 0.0, 1.0, log=True).ticks(3) == [12.0, 13.0, 14.0, 15.0]


@pytest.mark.parametrize("log", [False, True])
def test_all_values_lie_inside_also_a_single_one(log: bool) -> None:
    for values in ([14.2], [12.0, 174.0]):
        across = scale(values, (0.0, 100.0), 0.3, log=log)
        assert all(0 < across(v) < 100 for v in values)
