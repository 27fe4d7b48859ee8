"""The table of trained attentions: a row each, means over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from tenuto.records.attention import FULL, AttentionRun, Decode, SeedGroup
from tenuto.report import units
from tenuto.report.diffusion.table import Cell, Column, Row, missing

__all__ = ["attention_columns", "attention_rows"]


def _baseline(groups: Sequence[SeedGroup]) -> SeedGroup | None:
    own = next((group for group in groups if group.attention == FULL), None)
    return own or next((group for group in groups if all(run.whole for run in group.runs)), None)


def _bits(group: SeedGroup, baseline: SeedGroup | None, context: int) -> Cell:
    def measure(run: AttentionRun) -> float | None:
        bits = run.bits_at(context)
        return bits.value if bits else None

    mean = group.mean(measure)
    if mean is None:
        return missing()
    value, interval = mean
    note = units.span(*(f"{end:.3f}" for end in interval)) if interval else "one seed"
    beyond = group.against(baseline, measure) if baseline is not None and baseline is not group else None
    more, sure = "", False
    if beyond:
        extra, spread = beyond
        sure = spread is not None and not spread[0] <= 0 <= spread[1]
        more = f"{extra:+.3f} against {baseline.attention}" if baseline else ""
    return Cell(text=f"{value:.3f}", note=note, value=value, more=more, worse=sure)


def _speed(group: SeedGroup) -> Cell:
    mean = group.mean(lambda run: run.train_tokens_per_cpu_s or None)
    return Cell(text=f"{mean[0]:,.0f}", note="tokens per CPU second", value=mean[0]) if mean else missing()


def _last(group: SeedGroup) -> Decode | None:
    return group.decode[-1] if group.decode else None


def _held(group: SeedGroup) -> Cell:
    last = _last(group)
    if last is None:
        return missing()
    device = last.held.get("device", 0)
    below = [f"{units.size(size)} on {tier}" for tier, size in last.held.items() if tier != "device" and size]
    return Cell(text=units.size(device), note=", ".join(below), value=device)


def _time(group: SeedGroup) -> Cell:
    last = _last(group)
    if last is None:
        return missing()
    first = group.decode[0]
    grown = last.milliseconds / first.milliseconds
    note = f"{units.times(grown)} of {first.context:,} tokens"
    return Cell(text=units.milliseconds(last.milliseconds), note=note, value=last.milliseconds)


def attention_columns(groups: Sequence[SeedGroup]) -> list[Column[SeedGroup]]:
    """Bits per byte at every context, training speed, and decoding at the longest context."""
    baseline = _baseline(groups)
    against = baseline.attention if baseline else FULL
    contexts = sorted({bits.context for group in groups for run in group.runs for bits in run.bits})
    longest = max((at.context for group in groups for at in group.decode), default=0)
    columns: list[Column[SeedGroup]] = [
        Column(
            title=f"{context:,} tokens",
            note="bits per byte",
            better="lower",
            cell=lambda group, context=context: _bits(group, baseline, context),  # type: ignore[misc]
            help=f"Held-out text read in passes of {context:,} tokens: mean over seeds with its 95 % interval, and the "
            f"difference to {against} with the same seeds, bold where its interval leaves out 0.",
        )
        for context in contexts
    ]
    return [
        *columns,
        Column(title="Training", note="speed", better="higher", cell=_speed, help="Of the median step."),
        Column(
            title="Held",
            note=f"at {longest:,} tokens",
            better="lower",
            cell=_held,
            help="Bytes of the cache on the compute tier, counted from its tensors; what is on lower tiers below.",
        ),
        Column(
            title="Decoding",
            note=f"at {longest:,} tokens",
            better="lower",
            cell=_time,
            help="Median time of one token, and how it has grown since the shortest context.",
        ),
    ]


def attention_rows(groups: Sequence[SeedGroup], columns: Sequence[Column[SeedGroup]]) -> list[Row[SeedGroup]]:
    """Numbered in their order."""
    baseline = _baseline(groups)
    return [
        Row(
            number=number,
            run=group,
            baseline=group is baseline,
            cells=[column.cell(group) for column in columns],
            note=f"{len(group.runs)} seed{'s' * (len(group.runs) > 1)}, {group.runs[0].parameters:,} parameters",
        )
        for number, group in enumerate(groups, 1)
    ]
