"""A sixth policy from outside: one hand-written file, found by its entry point and held to every law."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from click.testing import CliRunner

import tenuto
from tenuto import catalog
from tenuto.cli import main
from tenuto.testing import TinyDiT, check_feature_policy, denoise

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_in_the_catalog_and_parses(plugin: str) -> None:
    assert catalog.methods()["sixth"].cls.__module__ == plugin
    assert catalog.parse("sixth:warmup=3") == sys.modules[plugin].Sixth(warmup=3)


def test_the_command_line_lists_it(plugin: str) -> None:
    result = CliRunner().invoke(main, ["methods", "--json"])
    assert result.exit_code == 0, result.output
    assert "sixth" in {method["name"] for method in json.loads(result.output)}


def test_it_passes_the_laws(plugin: str) -> None:
    check_feature_policy(catalog.parse("sixth"), closed=catalog.parse("sixth:warmup=1000"))


def test_it_runs(plugin: str) -> None:
    model: Any = TinyDiT()
    with tenuto.attach(model, catalog.parse("sixth:warmup=2")) as run:
        denoise(model, steps=6)
    assert [event.decision for event in run.telemetry.events] == [
        *["compute", "compute", "reuse", "compute", "reuse", "compute"]
    ]


def test_without_it_nothing_of_it_is_left() -> None:
    assert "sixth" not in catalog.methods()
