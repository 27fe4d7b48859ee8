"""Records come back as they were written, and a damaged one is refused with its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.records.diffusion import Run, read_runs, write_run
from tenuto.records.timing import Timing

RUN = Run(
    policy="every_n:n=3",
    model="m",
    fingerprint="f",
    settings={"steps": 4},
    versions={"python": "3"},
    device="CPU",
    timing=Timing(seconds=(1.0, 2.0), baseline_seconds=(2.0, 3.0)),
    speedup=1.75,
    speedup_range=(1.5, 2.0),
    psnr_interval=(20.0, 30.0),
)


def test_round_trip_with_the_baseline_first(tmp_path: Path) -> None:
    others = [replace(RUN, policy=policy) for policy in ("a", "none", "z:x=1,y=2")]
    for run in [RUN, *others]:
        write_run(run, tmp_path)
    assert read_runs(tmp_path) == [others[1], others[0], RUN, others[2]]
    assert sorted(p.name for p in tmp_path.iterdir())[1] == "every_n_n=3.json"
    assert RUN.timing is not None
    assert RUN.timing.ratios == (2.0, 1.5)


def test_the_row_is_flat() -> None:
    row = RUN.row()
    assert row["speedup"] == 1.75
    assert not {"telemetry", "grid", "decisions", "timing", "images"} & set(row)


@pytest.mark.parametrize("text", ["{", "[]", '{"policy": "x"}', '{"timing": 3}'])
def test_damage_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        read_runs(tmp_path)


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_run(replace(RUN, psnr=float("inf")), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_runs(tmp_path / "absent")
    assert read_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        ("none", "none"),
        ("every_n:n=3", "every_n"),
        ("every_n:n=3+adacorrection:gain=0.8", "every_n+adacorrection"),
        ("fastcache:total=1e+16+adacorrection", "fastcache+adacorrection"),
    ],
)
def test_the_method_is_the_policy_without_its_numbers(policy: str, method: str) -> None:
    assert replace(RUN, policy=policy).method == method
