"""Records of all families side by side: told apart by what they say, those written before by their task."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenuto.errors import InputError
from tenuto.records.build import build
from tenuto.records.diffusion import Run, read_runs, write_run
from tenuto.records.folder import KINDS, read_folder
from tenuto.records.header import Header
from tenuto.records.kv import KVRun, write_kv_run
from tenuto.records.timing import Timing

HEAD: dict[str, Any] = {
    "model": "m", "fingerprint": "f", "settings": {"seed": 0}, "versions": {"tenuto": "0.1.0"}, "device": "CPU",
}  # fmt: skip
RUN = Run(policy="every_n:n=3", timing=Timing(seconds=(1.0,), baseline_seconds=(2.0,)), speedup=2.0, **HEAD)
KV = KVRun(policy="knorm", budget="keep=0.5", context=8, **HEAD)


def test_a_policy_may_be_called_like_another_family(tmp_path: Path) -> None:
    """As a plug-in's may: file names say nothing."""
    named = Run(policy="prompt-reuse", **HEAD)
    write_run(named, tmp_path)
    write_kv_run(KV, tmp_path)
    assert read_runs(tmp_path) == [named]
    assert read_folder(tmp_path).by_family == {"diffusion": [named], "kv": [KV]}


@pytest.mark.parametrize(("task", "family"), [("diffusion", "diffusion"), ("moe", "shards"), ("store", "reuse")])
def test_a_record_without_a_family_is_told_by_its_task(tmp_path: Path, task: str, family: str) -> None:
    raw = asdict(RUN) | {"task": task}
    del raw["family"]
    (tmp_path / "x.json").write_text(json.dumps(raw))
    found = read_folder(tmp_path)
    if family == "diffusion":
        assert found.by_family == {"diffusion": [RUN]}
    else:
        assert f"family {family}" in found.refused[0] and "version 0.1.0 of Tenuto wrote it" in found.refused[0]


def test_every_family_has_the_same_head() -> None:
    for family, kind in KINDS.items():
        assert issubclass(kind.record, Header)
        assert {item.name: item.default for item in fields(kind.record)}["family"] == family


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_record_needs_its_head(kind: Any) -> None:
    raw = dict.fromkeys((item.name for item in fields(kind.record)), 0)
    del raw["device"]
    with pytest.raises(ValueError, match="it has no device"):
        build(kind.record, raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@pytest.mark.slow
@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from([item.name for item in fields(Run)]), value=JSON)
def test_any_value_in_any_field_is_taken_or_refused_in_one_line(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(asdict(RUN) | {name: value}))
    found = read_folder(tmp_path)
    assert len(found.refused) + sum(map(len, found.by_family.values())) == 1
    assert not any("\n" in line or len(line) > 600 for line in found.refused)


def test_a_damaged_record_stops_a_benchmark_that_goes_on_from_it(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json is no record"):
        read_runs(tmp_path)
