"""PromptRun: the record of one way to read prompts of one kind at one ratio. Reports read it and never see a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenuto.records.files import Kind, file_name, read_kind, write_record
from tenuto.records.header import Header

__all__ = ["BASELINE", "KIND", "PromptRun", "read_prompt_runs", "write_prompt_run"]

BASELINE = "none"
"""The way that reads the whole prompt."""

Interval = tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRun(Header):
    """One way on one kind of text at one ratio, over all examples.

    Attributes:
        kind, ratio, way, method, context, examples: what was measured; method: the way's settings as text.
        held: entries over tokens; size: bytes over those of the uncompressed cache; both means.
        beside: the way whose method is measured, and which others are compared with; "" in older records.
        loss: nats per following token, of a task per token of the right answers; extra: of it beyond the uncompressed
            prompt's; behind: beyond that of ``beside`` (negative: better than it); both with 95 % intervals of the
            paired mean.
        right: share of the answers' tokens; right_behind: the share of ``beside`` less this one's, with its interval.
        answered: share of the questions whose greedily generated answer begins with the right one; answered_behind as
            right_behind.
        seconds: median CPU (on an accelerator: clock) seconds to the first token; speedup: median of the paired ratios
            of the uncompressed prompt's to these.
        pieces: of the method that is measured, the first example in pieces of text, with the sizes of the spans they
            became.
    """

    family: str = "prompt"
    kind: str
    ratio: float
    way: str
    method: str
    context: int
    examples: int
    held: float
    size: float
    loss: float
    extra: float
    extra_interval: Interval
    behind: float
    behind_interval: Interval
    right: float
    right_behind: float
    right_behind_interval: Interval
    answered: float
    answered_behind: float
    answered_behind_interval: Interval
    seconds: float
    speedup: float
    pieces: list[tuple[str, int]] = field(default_factory=list)
    beside: str = ""

    @property
    def policy(self) -> str:
        """What reports call it."""
        return self.way

    @property
    def reference(self) -> bool:
        """Whether it is the way that others are compared with: in older records, the one that differs from it by 0."""
        if self.beside:
            return self.way == self.beside
        return self.way != BASELINE and self.behind == 0 and not any(self.behind_interval or ())

    def row(self) -> dict[str, Any]:
        """As a JSON object, without the text."""
        told = asdict(self)
        del told["pieces"]
        return told


def write_prompt_run(run: PromptRun, folder: Path) -> Path:
    """Write one record, beside and renamed."""
    name = file_name(f"{run.kind}-{run.ratio:g}-{run.context}-{run.way}")
    return write_record(run, folder / f"prompt-{name}.json")


def _order(run: PromptRun) -> tuple[Any, ...]:
    return run.kind, run.context, -run.ratio, run.way != BASELINE, not run.reference, run.way


KIND = Kind("prompt", PromptRun, _order)


def read_prompt_runs(folder: Path) -> list[PromptRun]:
    """All PromptRuns in a folder: by kind of text, context and ratio, the baseline first; none if it holds none.

    Raises:
        InputError: the folder does not exist, or a record is damaged.
    """
    return read_kind(folder, KIND)
