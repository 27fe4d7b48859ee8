"""The tables of docs/results, from the records of a benchmark: ``python benchmarks/markdown.py FOLDER [--best]``.

``--best`` prints, per method, the highest PSNR among its rows that are at least 2, 3, 4 and 6 times cheaper by
operations.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tenuto.records.diffusion import Run, read_runs

COLUMNS = [
    "policy",
    "speed-up (range)",
    "FLOP speed-up",
    "PSNR dB (95 %)",
    "SSIM",
    "FID-fashion",
    "class accuracy",
    "reused",
]


def row(run: Run) -> list[str]:
    speed = f"withheld: {run.withheld}" if run.withheld else ""
    if run.speedup is not None and run.speedup_range is not None:
        speed = f"{run.speedup:.2f} ({run.speedup_range[0]:.2f} to {run.speedup_range[1]:.2f})"
    near = ""
    if run.psnr is not None and run.psnr_interval is not None:
        near = f"{run.psnr:.1f} ({run.psnr_interval[0]:.1f} to {run.psnr_interval[1]:.1f})"
    return [
        f"`{run.policy}`",
        "1" if run.policy == "none" else speed,
        f"{run.flops_speedup:.2f}" if run.flops_speedup else "",
        near,
        f"{run.ssim:.4f}" if run.ssim is not None else "",
        f"{run.fid:.2f}" if run.fid is not None else "",
        f"{100 * run.class_accuracy:.1f} %" if run.class_accuracy is not None else "",
        f"{100 * run.reuse_ratio:.0f} %",
    ]


SPEEDS = (2, 3, 4, 6)


def best(runs: list[Run]) -> list[list[str]]:
    """Per method, the highest PSNR at each speed-up or a higher one; empty where the method has no such row."""
    rows: dict[str, list[float]] = {}
    for run in runs:
        if run.speedup and run.flops_speedup and run.psnr:
            reached = [run.psnr if round(run.flops_speedup, 2) >= speed else 0.0 for speed in SPEEDS]
            rows[run.method] = list(map(max, reached, rows.get(run.method, [0.0] * len(SPEEDS))))
    ordered = sorted(rows.items(), key=lambda item: -item[1][1])
    return [[f"`{name}`", *(f"{psnr:.1f}" if psnr else "" for psnr in found)] for name, found in ordered]


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--best"]):
        raise SystemExit(__doc__)
    runs = read_runs(Path(sys.argv[1]))
    if sys.argv[2:]:
        head, body = ["method", *(f"{speed}x" for speed in SPEEDS)], best(runs)
    else:
        ordered = sorted(runs, key=lambda run: (run.policy != "none", run.speedup or 0))
        head, body = COLUMNS, list(map(row, ordered))
    for cells in [head, ["---"] * len(head), *body]:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
