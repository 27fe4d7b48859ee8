"""The table of sharded caches: what stands in each cell."""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.records.shards import BASELINE, ShardsRun
from tenuto.report import units
from tenuto.report.diffusion.table import Cell, Column, Row, missing

__all__ = ["COLUMNS", "shards_rows"]


def _perplexity(run: ShardsRun) -> Cell:
    note = "reference" if run.placement == BASELINE else f"{100 * (run.perplexity / run.own - 1):+.1f}{units.NBSP}%"
    return Cell(text=f"{run.perplexity:.3f}", note=note, value=run.perplexity)


def _kl(run: ShardsRun) -> Cell:
    same = f"same: {units.percent(run.same)}"
    return missing("reference") if run.placement == BASELINE else Cell(text=f"{run.kl:.4f}", note=same, value=run.kl)


def _gap(run: ShardsRun) -> Cell:
    if run.placement == BASELINE:
        return missing("reference")
    return Cell(text=f"{run.logit_gap:.1e}", note=f"of {run.logit_largest:.1f}", value=run.logit_gap)


def _read(run: ShardsRun) -> Cell:
    if run.placement == BASELINE:
        return missing("everything")
    note = f"{run.pages_read:,} of {run.pages_held:,} pages"
    return Cell(text=units.percent(run.read), note=note, value=run.read)


def _dropped(run: ShardsRun) -> Cell:
    if run.placement == BASELINE or run.dropped is None:
        return missing("reference" if run.placement == BASELINE else "not measured")
    return Cell(text=f"{run.dropped:.3f}", value=run.dropped)


def _sizes(sizes: Sequence[int]) -> str:
    return ", ".join(units.size(size) for size in sizes)


def _held(run: ShardsRun) -> Cell:
    below = f"below: {_sizes(run.bytes_below)}" if any(run.bytes_below) else ""
    deleted = f"{run.tokens_deleted:,} tokens deleted" if run.tokens_deleted else ""
    share = units.percent(sum(run.bytes_held) / run.bytes_full) if run.bytes_full else ""
    note, more = f"all ranks: {share} of full", "; ".join(text for text in (below, deleted) if text)
    return Cell(text=_sizes(run.bytes_held), note=note, value=max(run.bytes_held), more=more)


def _sent(run: ShardsRun) -> Cell:
    if run.placement == BASELINE:
        return missing("one process")
    note = f"{run.collectives:,} collectives in {run.steps} steps"
    return Cell(text=f"{run.sent:,.0f}{units.NBSP}B", note=note, value=run.sent)


def _speed(run: ShardsRun) -> Cell:
    ratio = units.times(run.tokens_per_s / run.own_tokens_per_s)
    note = "reference" if run.placement == BASELINE else ratio
    return Cell(text=f"{run.tokens_per_s:.1f}", note=note, value=run.tokens_per_s)


def _stall(run: ShardsRun) -> Cell:
    if not run.pages_fetched:
        return missing("none")
    note = f"{run.pages_fetched:,} pages fetched"
    return Cell(text=units.duration(run.stall_s), note=note, value=run.stall_s)


def _balance(run: ShardsRun) -> Cell:
    return missing("one process") if run.placement == BASELINE else Cell(text=f"{run.balance:.2f}", value=run.balance)


COLUMNS: tuple[Column[ShardsRun], ...] = (
    Column(
        title="Perplexity",
        note="difference",
        better="lower",
        cell=_perplexity,
        help="Of the tokens after the contexts, and how far above that with the model's own cache. It is noisy on few "
        "tokens: a gain over the model's own cache is noise.",
    ),
    Column(
        title="KL",
        note="nats, same token",
        better="lower",
        cell=_kl,
        help="Mean Kullback-Leibler divergence of the next-token distribution from that with the model's own cache: "
        "much steadier than perplexity. Below it: how many steps have the same likeliest token.",
    ),
    Column(
        title="Largest |Δ logit|",
        note="of the largest logit",
        better="lower",
        cell=_gap,
        help="The largest difference of any logit from the model's own cache. With everything read and raw pages it is "
        "the rounding of another order of sums, and grows with the logits.",
    ),
    Column(
        title="Read",
        note="tokens, pages",
        better="lower",
        cell=_read,
        help="Tokens that decoding steps read over tokens held, sinks and recent window included; pages of which any "
        "token was read; all rows, layers and steps.",
    ),
    Column(
        title="ε",
        note="mass left out",
        better="lower",
        cell=_dropped,
        help="Softmax mass of the tokens that were held and not read, measured from their keys: mean over steps, "
        "layers, rows and heads. Not measured where pages are in a lower tier.",
    ),
    Column(
        title="Held",
        note="each rank",
        better="lower",
        cell=_held,
        help="Bytes of keys and values in memory on each rank at the end, counted from tensors, room for tokens to "
        "come included; below it, of all ranks and in the lower tier.",
    ),
    Column(
        title="Sent",
        note="a rank, a collective",
        better="lower",
        cell=_sent,
        help="Bytes that a rank puts on the wire in one collective while decoding; one collective a layer and step. "
        "It does not depend on the length of the context.",
    ),
    Column(
        title="Tokens/s",
        note="decoding, ratio",
        better="higher",
        cell=_speed,
        help="Decoded tokens per second of wall clock, all rows, and over that of the model's own cache in one process "
        "before. Ranks of this run share one machine, so no gain is to be expected here.",
    ),
    Column(
        title="Stall",
        note="waiting for pages",
        better="lower",
        cell=_stall,
        help="Seconds of decoding spent waiting for the lower tier, the slowest rank.",
    ),
    Column(
        title="Load",
        note="largest over mean",
        better="lower",
        cell=_balance,
        help="Tokens on the fullest shard over the mean, the worst layer; 1 is even.",
    ),
)


def shards_rows(runs: Sequence[ShardsRun]) -> list[Row[ShardsRun]]:
    """One row per record in the order given; the baseline is number 0 and the others count from 1."""
    rows, number = [], 0
    for run in runs:
        baseline = run.placement == BASELINE
        number += not baseline
        cells = [column.cell(run) for column in COLUMNS]
        note = "the model's own cache, one process" if baseline else ""
        rows.append(Row(number=0 if baseline else number, run=run, baseline=baseline, cells=cells, note=note))
    return rows
