"""The table of docs/results.md, from the records of a benchmark: ``python benchmarks/markdown.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tenuto.eval.run import Run, read_runs

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


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    runs = read_runs(Path(sys.argv[1]))
    ordered = sorted(runs, key=lambda run: (run.policy != "none", run.speedup or 0))
    for cells in [COLUMNS, ["---"] * len(COLUMNS), *map(row, ordered)]:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
