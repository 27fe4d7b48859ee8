"""Records of trained attentions as Markdown tables, read as well in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from tenuto.errors import InputError, closest
from tenuto.records.attention import AttentionRun, Mean, SeedGroup, grouped

__all__ = ["attention_tables", "bands", "markdown"]

DASH = "-"
MEBI = 2**20
RESIDUES = 8
"""Classes of distances modulo a stride."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def shown(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([shown(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(shown, rows)])


def bands(length: int) -> list[tuple[int, int]]:
    """Ranges of distance up to ``length``, doubling from 16 on: ``[(0, 32), (32, 64), ...]``."""
    edges = [0]
    while (edge := max(16, edges[-1]) * 2) < length:
        edges.append(edge)
    return list(zip(edges, [*edges[1:], length], strict=True))


def attention_tables(runs: Sequence[AttentionRun], baselines: Sequence[str] = ()) -> str:
    """Three tables: quality and cost of each attention, its paired differences to baselines, its recall by distance.

    Raises:
        InputError: a baseline is not among the records.
    """
    groups = grouped(runs)
    known = {group.attention: group for group in groups}
    for name in baselines:
        if name not in known:
            raise InputError(f"The baseline {name!r} was not measured.{closest(name, known)}")
    parts = [_quality(groups), *(_differences(groups, known[name]) for name in baselines), _recall(groups)]
    parts += [_residues(groups, period) for period in sorted({g.runs[0].period for g in groups} - {0})]
    if any(group.decode for group in groups):
        parts.append(_decoding(groups))
    if usage := _usage(groups):
        parts.append(usage)
    return "\n\n".join(parts)


def _contexts(groups: Sequence[SeedGroup]) -> list[int]:
    return sorted({bits.context for group in groups for run in group.runs for bits in run.bits})


def _bits(context: int, last: bool = False) -> Callable[[AttentionRun], float | None]:
    def measure(run: AttentionRun) -> float | None:
        bits = run.bits_at(context)
        return None if bits is None else bits.last if last else bits.value

    return measure


def _shown(mean: Mean | None, form: str = ".3f") -> str:
    if mean is None:
        return DASH
    value, interval = mean
    return f"{value:{form}}" + (f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval else "")


def _quality(groups: Sequence[SeedGroup]) -> str:
    contexts = _contexts(groups)
    head = ["attention", "seeds", "parameters", *(f"bits/byte at {c}" for c in contexts)]
    head += [f"last quarter of {contexts[-1]}", "training tokens/CPU s"]
    rows = []
    for group in groups:
        speed = group.mean(lambda run: run.train_tokens_per_cpu_s)
        rows.append(
            [
                group.attention,
                str(len(group.runs)),
                f"{group.runs[0].parameters:,}",
                *(_shown(group.mean(_bits(context))) for context in contexts),
                _shown(group.mean(_bits(contexts[-1], last=True))),
                f"{speed[0]:,.0f}" if speed else DASH,
            ]
        )
    return "Held-out bits per byte, mean over seeds and 95 % interval.\n\n" + markdown(head, rows)


def _differences(groups: Sequence[SeedGroup], baseline: SeedGroup) -> str:
    contexts = _contexts(groups)
    rows = []
    for group in groups:
        if group is not baseline:
            told = [group.against(baseline, _bits(context)) for context in contexts]
            rows.append([group.attention, *(_signed(mean) for mean in told)])
    head = ["attention", *(f"at {context}" for context in contexts)]
    title = f"Bits per byte beyond {baseline.attention}, paired by seed, with the 95 % interval: below 0 is better."
    return f"{title}\n\n{markdown(head, rows)}"


def _signed(mean: Mean | None) -> str:
    if mean is None:
        return DASH
    value, interval = mean
    return f"{value:+.4f}" + (f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else "")


def _recall(groups: Sequence[SeedGroup]) -> str:
    length = _contexts(groups)[-1]
    spans = bands(length)
    rows = []
    for group in groups:
        told = [group.mean(lambda run, low=low, high=high: run.recalled(length, low, high)) for low, high in spans]  # type: ignore[misc]
        rows.append([group.attention, *(DASH if mean is None else f"{mean[0]:.0%}" for mean in told)])
    head = ["attention", *(f"{low} to {high - 1}" for low, high in spans)]
    told_of = groups[0].runs[0].candidates
    title = f"Facts recalled in rows of {length} tokens, among {told_of} words, by distance in tokens."
    return f"{title}\n\n{markdown(head, rows)}"


def _residues(groups: Sequence[SeedGroup], period: int) -> str:
    """Recall by distance modulo a stride, of all attentions: where only periodic ones have blind spots."""
    contexts = _contexts(groups)
    edges = [period * part // RESIDUES for part in range(RESIDUES + 1)]
    spans = [(low, high) for low, high in pairwise(edges) if low < high]
    rows = []
    for group in groups:
        told = [
            group.mean(lambda run, low=low, high=high: run.recalled_off(contexts[-1], period, low, high, 2 * period))  # type: ignore[misc]
            for low, high in spans
        ]
        rows.append([group.attention, *(DASH if mean is None else f"{mean[0]:.0%}" for mean in told)])
    head = ["attention", *(f"{low} to {high - 1}" for low, high in spans)]
    title = f"The same by distance modulo {period}, distances of {2 * period} and more."
    return f"{title}\n\n{markdown(head, rows)}"


def _decoding(groups: Sequence[SeedGroup]) -> str:
    contexts = sorted({decode.context for group in groups for decode in group.decode})
    head = ["attention", *(f"ms at {c}" for c in contexts), *(f"MiB at {c}" for c in contexts)]
    rows = []
    for group in groups:
        known = {decode.context: decode for decode in group.decode}
        times = [f"{known[c].milliseconds:.1f}" if c in known else DASH for c in contexts]
        sizes = [_size(known[c].held) if c in known else DASH for c in contexts]
        rows.append([group.attention, *times, *sizes])
    return "Decoding one token, and bytes of the cache, one sequence.\n\n" + markdown(head, rows)


def _size(held: dict[str, int]) -> str:
    below = [f"{size / MEBI:.1f} {tier}" for tier, size in held.items() if tier != "device" and size]
    return " + ".join([f"{held.get('device', 0) / MEBI:.2f}", *below])


def _usage(groups: Sequence[SeedGroup]) -> str:
    rows = []
    levels = list(dict.fromkeys(level for g in groups for run in g.runs for layer in run.usage for level in layer))
    for group in groups:
        for number, layer in enumerate(group.runs[0].usage):
            rows.append([group.attention, str(number), *(f"{layer.get(level, 0.0):.1%}" for level in levels)])
    if not levels:
        return ""
    return "Share of attention by level and layer, first seed.\n\n" + markdown(["attention", "layer", *levels], rows)
