from __future__ import annotations

import re

from tenuto.report.diffusion.heatmap import coverage, decision_map, fraction_map, shares


def test_each_cell_is_where_and_what_it_was() -> None:
    svg = decision_map([["compute", "compute"], ["reuse", "compute"], ["reuse", "forecast"]], "a<b")
    assert re.findall(r"<title>(.*?)</title>", svg) == [
        "block 0, step 0: compute",
        "block 0, steps 1 to 2: reuse",
        "block 1, steps 0 to 1: compute",
        "block 1, step 2: forecast",
    ]
    boxes = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', svg)
    assert boxes == [
        ("compute", "36", "8", "172"),
        ("reuse", "208", "8", "344"),
        ("compute", "36", "26", "344"),
        ("forecast", "380", "26", "172"),
    ]
    assert "Decisions of a&lt;b in one generation" in svg


def test_fractions_shade_the_cell() -> None:
    svg = fraction_map([[0.0], [0.25]], "a")
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.00", "0.25"]
    assert "not computed in 25\u00a0% of the calls" in svg
    assert "12.5\u00a0% on average" in svg


def test_shares_in_words() -> None:
    assert shares([["compute", "reuse"], ["reuse", "reuse"]]) == "compute 25\u00a0%, reuse 75\u00a0%"
    assert shares([]) == ""


def test_what_is_cached_in_words_and_nothing_of_strangers() -> None:
    told = {"blocks": {"double": 2, "single": 4}, "parameters": 0.875, "left_out": ["refiner"], "spans": 6}
    assert coverage({"transformer": told}) == (
        "transformer: 2 double, 4 single cached, 88\u00a0% of its parameters, not refiner"
    )
    assert coverage({"a": told | {"left_out": []}}).endswith("parameters")
    for strange in (None, [], {"a": None}, {"a": {"blocks": 3}}, {"a": told | {"parameters": "most"}}):
        assert coverage(strange) == ""


def test_nothing_recorded_nothing_drawn() -> None:
    assert decision_map([], "a") == fraction_map([], "a") == fraction_map([[]], "a") == ""


def test_a_large_model_stays_small() -> None:
    svg = decision_map([["compute" if s % 3 else "reuse"] * 57 for s in range(50)], "a")
    assert len(svg) < 500_000
