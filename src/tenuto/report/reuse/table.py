"""The table of stores of prefixes: what stands in each cell."""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.records.reuse import ReuseRun
from tenuto.report import units
from tenuto.report.diffusion.table import Cell, Column, Row

__all__ = ["COLUMNS", "reuse_rows"]


def _speedup(run: ReuseRun) -> Cell:
    note = units.span(f"{run.speedup_low:.2f}", f"{run.speedup_high:.2f}")
    return Cell(text=units.times(run.speedup), note=note, value=run.speedup)


def _processor(run: ReuseRun) -> Cell:
    return Cell(text=units.times(run.cpu_speedup), value=run.cpu_speedup)


def _load(run: ReuseRun) -> Cell:
    note = f"computed: {units.duration(run.recompute_s)}"
    return Cell(text=units.duration(run.restore_s), note=note, value=run.restore_s)


def _loaded(run: ReuseRun) -> Cell:
    return Cell(text=f"{run.restored:,}", note=f"of {run.context:,}", value=run.restored)


def _stored(run: ReuseRun) -> Cell:
    note = f"{units.percent(run.share)} of the cache"
    return Cell(text=units.size(run.bytes_stored), note=note, value=run.bytes_stored)


def _gap(run: ReuseRun) -> Cell:
    return Cell(text=f"{run.logits_error:.1e}", value=run.logits_error)


def _text(run: ReuseRun) -> Cell:
    return Cell(text="same" if run.same_text else "other", value=float(run.same_text))


def _perplexity(run: ReuseRun) -> Cell:
    note = f"{100 * run.perplexity_change:+.2f}{units.NBSP}%"
    return Cell(text=f"{run.perplexity:.3f}", note=note, value=run.perplexity_change)


COLUMNS: tuple[Column[ReuseRun], ...] = (
    Column(
        title="Speed-up",
        note="first token, median, range",
        better="higher",
        cell=_speedup,
        help="Seconds to the first token where the prompt is computed, over those where it is loaded, turn by turn.",
    ),
    Column(
        title="Processor",
        note="ratio",
        better="higher",
        cell=_processor,
        help="The same of processor seconds, which other work on the machine disturbs less.",
    ),
    Column(
        title="Load",
        note="first token",
        better="lower",
        cell=_load,
        help="Median seconds to the first token where the prompt is loaded, what was not stored computed.",
    ),
    Column(
        title="Loaded",
        note="tokens",
        better="higher",
        cell=_loaded,
        help="Tokens of the prompt that came from the store: whole pages.",
    ),
    Column(
        title="Stored",
        note="bytes, share",
        better="lower",
        cell=_stored,
        help="Bytes of the prompt's pages in the store, and over those of its cache in the model's dtype.",
    ),
    Column(
        title="Largest |Δ logit|",
        note="first token",
        better="lower",
        cell=_gap,
        help="Largest difference of a logit of the first token from the computed prompt's.",
    ),
    Column(
        title="Text",
        note="32 tokens",
        better="",
        cell=_text,
        help="Whether the next 32 tokens, taken greedily, are those after a computed prompt.",
    ),
    Column(
        title="Perplexity",
        note="difference",
        better="lower",
        cell=_perplexity,
        help="Of the 64 tokens that follow in the text, and how far above that after a computed prompt.",
    ),
)


def reuse_rows(runs: Sequence[ReuseRun]) -> list[Row[ReuseRun]]:
    """One row per record in the order given, counted from 1."""
    return [
        Row(number=number, run=run, baseline=False, cells=[column.cell(run) for column in COLUMNS])
        for number, run in enumerate(runs, 1)
    ]
