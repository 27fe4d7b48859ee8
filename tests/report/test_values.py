from __future__ import annotations

import pytest

from tenuto.report.values import number, pair, shares


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("-inf"), 10**400])
def test_what_is_no_number(value: object) -> None:
    assert not number(value)


def test_what_is_a_number() -> None:
    assert number(-1.5)
    assert number(0)


def test_pairs_rise() -> None:
    assert pair((1, 1)) and pair(None)
    assert not pair((2, 1))
    assert not pair((1,))


def test_shares_are_rectangles_of_fractions() -> None:
    assert shares([[0, 1.0], [0.5, 0.5]]) and shares([])
    assert not shares([[0.5], [0.5, 0.5]])
    assert not shares([[1.01]])
