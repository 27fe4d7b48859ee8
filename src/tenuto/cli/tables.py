"""Records as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.table import Table

from tenuto.records.diffusion import Run
from tenuto.records.kv import KVRun, Score
from tenuto.records.prompt import PromptRun
from tenuto.records.reuse import ReuseRun
from tenuto.records.shards import ShardsRun
from tenuto.records.timing import Timing

__all__ = ["kv_table", "prompt_cells", "prompt_table", "reuse_table", "shadow_table", "shards_table", "table"]

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


def _score(score: Score | None) -> str:
    if score is None:
        return DASH
    low, high = score.interval
    return f"{score.value:.3g} ({low:.3g} to {high:.3g})"


def _ratio(timing: Timing | None) -> str:
    """Baseline over method: above one is faster."""
    return DASH if timing is None else f"{median(timing.ratios):.2f}x"


def kv_table(runs: Sequence[KVRun]) -> Table:
    """One row per policy, budget and context length."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("policy", no_wrap=True)
    tasks = list(dict.fromkeys(name for run in runs for name in run.scores))
    for title in ("budget", "context", *tasks, "held MiB", "of full", "TTFT s", "", "decode ms", ""):
        shown.add_column(title, justify="right")
    for run in runs:
        shown.add_row(
            run.policy,
            run.budget,
            str(run.context),
            *(_score(run.scores.get(name)) for name in tasks),
            _size(run.bytes_held),
            _number(run.held, ".1%"),
            _number(run.ttft_s, ".2f"),
            _ratio(run.ttft),
            _number(run.decode_cpu_ms, ".1f"),
            _ratio(run.decode),
        )
    return shown


def prompt_table(rows: Sequence[PromptRun]) -> Table:
    """One row per way to read a prompt; losses in nats per token, intervals of paired means."""
    shown = Table(box=None, pad_edge=False)
    titles = ("held", "bytes", "loss", "beyond none", "beyond method", "facts", "answers", "first token s", "faster")
    for title in ("text", "ratio", "way"):
        shown.add_column(title, no_wrap=True)
    for title in titles:
        shown.add_column(title, justify="right")
    for row in rows:
        shown.add_row(*prompt_cells(row))
    return shown


def prompt_cells(row: PromptRun) -> tuple[str, ...]:
    """What is shown of a row."""
    return (
        row.kind,
        f"{row.ratio:g}",
        row.way,
        f"{row.held:.3f}",
        f"{row.size:.3f}",
        f"{row.loss:.3f}",
        DASH if row.way == "none" else _with_interval(row.extra, row.extra_interval),
        DASH if row.reference else _with_interval(row.behind, row.behind_interval),
        f"{row.right:.2f}",
        f"{row.answered:.2f}",
        f"{row.seconds:.2f}",
        f"{row.speedup:.2f}x",
    )


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def shards_table(runs: Sequence[ShardsRun]) -> Table:
    """One row per placement and selector; bytes are the largest of all ranks."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("placement, selector", no_wrap=True)
    titles = (
        "perplexity",
        "KL",
        "logits off",
        "read",
        "dropped",
        "MiB",
        "below",
        "sent",
        "tokens/s",
        "stall s",
        "load",
    )
    for title in titles:
        shown.add_column(title, justify="right")
    for run in runs:
        shown.add_row(
            run.policy,
            f"{run.perplexity:.3f}",
            f"{run.kl:.4f}",
            f"{run.logit_gap:.1e}",
            f"{run.read:.1%}",
            _number(run.dropped, ".3f"),
            _size(max(run.bytes_held)),
            _size(max(run.bytes_below, default=0)),
            f"{run.sent:,.0f} B",
            f"{run.tokens_per_s:.1f}",
            f"{run.stall_s:.2f}",
            f"{run.balance:.2f}",
        )
    return shown


def reuse_table(rows: Sequence[ReuseRun]) -> Table:
    """One row per store."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("store", no_wrap=True)
    shown.add_column("codec", no_wrap=True)
    for title in (
        "loaded",
        "MiB",
        "of full",
        "load s",
        "compute s",
        "faster",
        "CPU",
        "logits off",
        "text",
        "perplexity",
    ):
        shown.add_column(title, justify="right")
    for row in rows:
        shown.add_row(
            row.store,
            row.codec,
            f"{row.restored}/{row.context}",
            _size(row.bytes_stored),
            f"{row.share:.0%}",
            f"{row.restore_s:.2f}",
            f"{row.recompute_s:.2f}",
            f"{row.speedup:.1f}x ({row.speedup_low:.1f} to {row.speedup_high:.1f})",
            f"{row.cpu_speedup:.1f}x",
            f"{row.logits_error:.1e}",
            "same" if row.same_text else "other",
            f"{row.perplexity:.3f} ({row.perplexity_change:+.2%})",
        )
    return shown
