"""The terminal's table shows what was measured and why something is missing."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from tenuto.cli.tables import table
from tenuto.records.diffusion import Run

SHARED = {"model": "m", "fingerprint": "f", "settings": {}, "versions": {}, "device": "CPU"}


def shown(*runs: Run) -> list[str]:
    console = Console(width=150, record=True, file=StringIO())
    console.print(table(runs))
    return console.export_text().splitlines()


def test_numbers_dashes_and_reasons() -> None:
    lines = shown(
        Run(policy="none", fid=12.345, **SHARED),
        Run(policy="a:x=1", speedup=1.9, speedup_range=(1.8, 2.04), psnr=31.2, reuse_ratio=0.5, **SHARED),
        Run(policy="b", withheld="nothing was reused", cache_bytes=3 * 2**20, **SHARED),
    )
    assert lines[1].split() == ["none", "-", "-", "-", "-", "12.35", "-", "0.0%", "0.0", "-"]
    assert "1.90x (1.80 to 2.04)" in lines[2]
    assert "50.0%" in lines[2]
    assert lines[4].strip() == "b: no speed-up, nothing was reused"
