"""``tenuto attention``: what it prints, and its exit codes."""

from __future__ import annotations

import json

from click.testing import CliRunner, Result

from tenuto.cli import main


def tenuto(*args: str) -> Result:
    return CliRunner().invoke(main, ["attention", *args], prog_name="tenuto")


def test_coverage_is_printed_beside_the_paper_s_reach() -> None:
    options = ("coverage", "--window", "8", "--stride", "64", "--layers", "10")
    said = tenuto(*options)
    assert said.exit_code == 0, said.stderr
    assert "the paper's reach" in said.stdout and "4081" in said.stdout and "64 of 64 remainders" in said.stdout
    found = json.loads(tenuto(*options, "--json").stdout)
    assert found["layers"][-1]["gap"] == 4096 > found["layers"][-2]["gap"]
    assert found["reached_by_distance_modulo_stride"] == [1.0] * 64


def test_a_wrong_pattern_is_refused_in_one_line() -> None:
    said = tenuto("coverage", "--variant", "logs")
    assert said.exit_code == 2 and "Did you mean 'log'" in said.stderr and said.stderr.count("\n") == 1
    assert "a stride is 1 or more" in tenuto("coverage", "--stride", "0").stderr
