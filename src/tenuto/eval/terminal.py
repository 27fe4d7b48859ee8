"""Runs as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tenuto.eval.run import Run

__all__ = ["shadow_table", "table"]

MEBI = 2**20
DASH = "-"


def _speedup(run: Run) -> str:
    if run.speedup is None or run.speedup_range is None:
        return DASH
    low, high = run.speedup_range
    return f"{run.speedup:.2f}x ({low:.2f} to {high:.2f})"


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)


def _size(value: int | None) -> str:
    return DASH if value is None else f"{value / MEBI:.1f}"


def table(runs: Sequence[Run]) -> Table:
    """One row per Run; a dash where there is no value, the reason for a withheld speed-up below."""
    shown = Table(box=None, pad_edge=False, caption_justify="left")
    shown.add_column("policy", no_wrap=True)
    for title in ("speed-up", "FLOPs", "PSNR dB", "SSIM", "FID-fashion", "accuracy", "reused", "cache MiB", "peak MiB"):
        shown.add_column(title, justify="right")
    for run in runs:
        shown.add_row(
            run.policy,
            _speedup(run),
            DASH if run.flops_speedup is None else f"{run.flops_speedup:.2f}x",
            _number(run.psnr, ".2f"),
            _number(run.ssim, ".4f"),
            _number(run.fid, ".2f"),
            _number(run.class_accuracy, ".1%"),
            f"{run.reuse_ratio:.1%}",
            _size(run.cache_bytes),
            _size(run.peak_bytes),
        )
    withheld = [f"{run.policy}: no speed-up, {run.withheld}" for run in runs[1:] if run.withheld]
    shown.caption = "\n".join(withheld) or None
    return shown


def shadow_table(runs: Sequence[Run]) -> Table:
    """Every policy's true errors, in shadow mode, beside its budget."""
    shown = Table(box=None, pad_edge=False, title="True errors of estimates (shadow mode)", title_justify="left")
    shown.add_column("policy", no_wrap=True)
    for title in ("estimates", "worst", "mean", "rtol", "kept", "output error", "bound on it"):
        shown.add_column(title, justify="right")
    for run in runs:
        if told := run.shadow:
            shown.add_row(
                run.policy,
                str(told["estimates"]),
                *(_number(told[key], ".4f") for key in ("worst", "mean", "rtol")),
                {True: "yes", False: "no", None: DASH}[told["kept"]],
                *(_number(told[key], ".4f") for key in ("output_error", "output_bound")),
            )
    return shown
