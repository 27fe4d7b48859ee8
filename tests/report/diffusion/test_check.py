from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenuto.errors import InputError
from tenuto.records.diffusion import Run
from tenuto.records.timing import Timing
from tenuto.report.diffusion.check import check_diffusion


@pytest.mark.parametrize("policy", ["none", "every_n:n=2"])
def test_good_records_pass(make: Callable[..., Run], policy: str) -> None:
    check_diffusion(make(policy))
    check_diffusion(make(policy, timing=None, speedup=None, psnr=None, peak_bytes=None, withheld="because", grid=[]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", 3),
        ("device", None),
        ("withheld", True),
        ("speedup", "fast"),
        ("psnr", float("inf")),
        ("ssim", True),
        ("peak_bytes", -1),
        ("reuse_ratio", None),
        ("cache_bytes", "1 MiB"),
        ("speedup_range", (2.0, 1.0)),
        ("psnr_interval", (1.0,)),
        ("settings", []),
        ("telemetry", None),
        ("versions", {"torch": 2}),
        ("images", {"grid": None}),
        ("grid", [[0.0, 1.5]]),
        ("grid", [[0.0], [0.0, 0.0]]),
        ("decisions", [["compute", "skip"]]),
        ("decisions", ["compute"]),
        ("shadow", dict.fromkeys(("estimates", "worst", "mean", "output_error", "output_bound"), 0.5)),
        ("timing", Timing(seconds=(1.0,), baseline_seconds=())),
        ("timing", Timing(seconds=(0.0,), baseline_seconds=(1.0,))),
    ],
)
def test_what_cannot_be_drawn_is_refused(make: Callable[..., Run], field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"is damaged: {field} is") as error:
        check_diffusion(make("every_n:n=2", **{field: value}) if field != "policy" else make(value))
    assert "\n" not in str(error.value)
