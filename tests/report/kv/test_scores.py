from __future__ import annotations

from collections.abc import Callable

import pytest

from tenuto.records.kv import Score
from tenuto.report.kv.scores import KINDS, loss, shown, worse


@pytest.mark.parametrize(
    ("unit", "value", "lost", "texts"),
    [
        ("accuracy", 0.9, 0.04, ("90.0", "85.0 to 95.0", "loss 4.0, 2.0 to 6.0")),
        ("match", 0.505, 0.1, ("50.5", "45.5 to 55.5", "loss 10.0, 5.0 to 15.0")),
        ("perplexity", 14.2, 0.02, ("14.20", "14.15 to 14.25", "loss 0.020, 0.010 to 0.030")),
        ("nats", 0.1, 0.02, ("0.100", "0.050 to 0.150", "loss 0.020, 0.010 to 0.030")),
    ],
)
def test_each_unit(
    score: Callable[..., Score], unit: str, value: float, lost: float, texts: tuple[str, str, str]
) -> None:
    given = score(value, lost, unit=unit)
    assert (*shown(given), loss(given)) == tuple(text.replace(" to ", "\u00a0to\u00a0") for text in texts)
    assert KINDS[unit].help.endswith(".")


def test_only_a_loss_whose_interval_is_above_0_is_worse(score: Callable[..., Score]) -> None:
    assert worse(score(loss_interval=(0.001, 0.1)))
    assert not worse(score(loss_interval=(0.0, 0.1)))
    assert not worse(score(loss=None))


def test_signs(score: Callable[..., Score]) -> None:
    better = score(loss=-0.02, loss_interval=(-0.05, -0.00001))
    assert loss(better) == "loss −2.0, −5.0\u00a0to\u00a00.0"
    assert loss(score(loss=None)) == ""
