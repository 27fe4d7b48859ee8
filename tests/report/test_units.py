from __future__ import annotations

import pytest

from tenuto.report import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (150 * 2**20, "150 MiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert units.size(count) == text.replace(" ", "\u00a0")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.04, "40 ms"), (3.21, "3.2 s"), (59.97, "1 min 0 s"), (125, "2 min 5 s"), (11400, "3 h 10 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text.replace(" ", "\u00a0")


def test_the_rest() -> None:
    assert units.times(1.875) == "1.88×"
    assert units.percent(0.123) == "12.3\u00a0%"
    assert units.span("1.0", "2.0") == "1.0\u00a0to\u00a02.0"
