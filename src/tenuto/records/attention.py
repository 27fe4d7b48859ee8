"""AttentionRun: the record of one trained attention with one seed. Reports read it and never see a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path
from statistics import median
from typing import Any

from tenuto.records.files import Kind, file_name, read_kind, write_record
from tenuto.records.header import Header
from tenuto.records.intervals import mean_interval

__all__ = [
    "FULL",
    "KIND",
    "AttentionRun",
    "Bits",
    "Decode",
    "SeedGroup",
    "grouped",
    "read_attention_runs",
    "write_attention_run",
]

FULL = "mha"
"""A model's own attention, to everything: what others are compared with."""

ORDER = (FULL, "gqa", "mqa", "mla")
"""Which attentions of models come first in tables."""

Measure = Callable[["AttentionRun"], float | None]
Mean = tuple[float, tuple[float, float] | None]
"""A mean over seeds with its 95 % interval, None of a single seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bits:
    """Bits per byte of held-out text read in passes of ``context`` tokens; the same bytes at every context.

    Attributes:
        value: over all tokens; last: over those of the last quarter of each pass; bytes: how many they all are.
    """

    context: int
    value: float
    last: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Decoding one token after ``context`` others.

    Attributes:
        seconds: of the processor (wall clock on an accelerator), one per repeat.
        held: bytes of the cache by tier: "device", and where there are any below it "host".
    """

    context: int
    seconds: tuple[float, ...]
    held: dict[str, int]

    @property
    def milliseconds(self) -> float:
        """The median."""
        return 1000 * median(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRun(Header):
    """What was measured of one trained model.

    Attributes:
        attention: as text; seed: of weights and data order; parameters: trained numbers.
        model: its folder's name; fingerprint: of its weights.
        settings: of training and measuring, the same in all records of a folder; context: tokens of a training row.
        train_tokens_per_s, train_tokens_per_cpu_s: of the median step; losses: nats per token of every step.
        bits: by context. decode: by context; empty for all seeds but the first.
        recall: ``[length, distance, rank]`` of every question: tokens of the row, tokens between the value and where it
            is asked for, and how many of the ``candidates`` were likelier (0 is right).
        period: tokens between two skips of a periodic pattern, 0 without one.
        whole: whether a method attends to everything, so that others may be compared with it where there is no ``mha``.
        usage: per layer, the share of attention by level, mean over heads; empty where there are no levels.
    """

    family: str = "attention"
    attention: str
    seed: int
    parameters: int
    context: int
    train_tokens_per_s: float = 0.0
    train_tokens_per_cpu_s: float = 0.0
    losses: tuple[float, ...] = ()
    bits: tuple[Bits, ...] = ()
    decode: tuple[Decode, ...] = ()
    recall: tuple[tuple[int, int, int], ...] = ()
    candidates: int = 0
    usage: tuple[dict[str, float], ...] = ()
    period: int = 0
    whole: bool = False

    @property
    def policy(self) -> str:
        """The attention, under the name that all records have it."""
        return self.attention

    def bits_at(self, context: int) -> Bits | None:
        """Of that context."""
        return next((bits for bits in self.bits if bits.context == context), None)

    def decode_at(self, context: int) -> Decode | None:
        """Of that context."""
        return next((decode for decode in self.decode if decode.context == context), None)

    def recalled(self, length: int, low: int, high: int) -> float | None:
        """The share of right answers among questions in rows of ``length`` at distances in ``[low, high)``."""
        ranks = [rank for row, distance, rank in self.recall if row == length and low <= distance < high]
        return sum(rank == 0 for rank in ranks) / len(ranks) if ranks else None

    def recalled_off(self, length: int, period: int, low: int, high: int, beyond: int) -> float | None:
        """The share of right answers in rows of ``length`` at distances of at least ``beyond`` that are in
        ``[low, high)`` modulo ``period``."""
        asked = [(far % period, rank) for row, far, rank in self.recall if row == length and far >= beyond]
        ranks = [rank for off, rank in asked if low <= off < high]
        return sum(rank == 0 for rank in ranks) / len(ranks) if ranks else None

    def row(self) -> dict[str, Any]:
        """The flat JSON object that ``--json`` prints: questions and losses left out."""
        return {key: value for key, value in asdict(self).items() if key not in {"recall", "losses"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """The records of one attention, by seed."""

    attention: str
    runs: tuple[AttentionRun, ...]

    @property
    def policy(self) -> str:
        """The attention, under the name that all rows of a page have it."""
        return self.attention

    def mean(self, measure: Measure) -> Mean | None:
        """Over the seeds that have the number; None if none has."""
        values = [value for run in self.runs if (value := measure(run)) is not None]
        return (fsum(values) / len(values), mean_interval(values)) if values else None

    def against(self, other: SeedGroup, measure: Measure) -> Mean | None:
        """The mean paired difference to another attention with the same seeds; None if they share no seed."""
        theirs = {run.seed: value for run in other.runs if (value := measure(run)) is not None}
        pairs = [(measure(run), theirs[run.seed]) for run in self.runs if run.seed in theirs]
        found = [mine - its for mine, its in pairs if mine is not None]
        return (fsum(found) / len(found), mean_interval(found)) if found else None

    @property
    def decode(self) -> tuple[Decode, ...]:
        """Of the seed that was timed."""
        return next((run.decode for run in self.runs if run.decode), ())


def grouped(runs: Sequence[AttentionRun]) -> list[SeedGroup]:
    """By attention: the plain ones first, then by name."""
    names = sorted({run.attention for run in runs}, key=lambda name: (_place(name), name))
    return [SeedGroup(attention=name, runs=tuple(r for r in runs if r.attention == name)) for name in names]


def _place(attention: str) -> int:
    name = attention.rpartition("+")[2].partition(":")[0]
    return ORDER.index(name) if name in ORDER else len(ORDER)


def path_of(run: AttentionRun, folder: Path) -> Path:
    """Where a record is kept."""
    return folder / f"attention-{file_name(run.attention)}-{run.seed}.json"


def write_attention_run(run: AttentionRun, folder: Path) -> Path:
    """Write one record, beside and renamed."""
    return write_record(run, path_of(run, folder))


KIND = Kind("attention", AttentionRun, lambda run: (_place(run.attention), run.attention, run.seed))


def read_attention_runs(folder: Path) -> list[AttentionRun]:
    """All records in a folder, by attention and seed; none if it holds none.

    Raises:
        InputError: the folder does not exist, or a record is damaged.
    """
    return read_kind(folder, KIND)
