"""PromptRun: the record of one way to read prompts of one kind at one ratio. Reports read it and never see a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenuto.records.diffusion import PROMPT_FILES
from tenuto.records.files import file_name, read_record, write_record

__all__ = ["PromptRun", "read_prompt_runs", "write_prompt_run"]

TASK = "prompt"
PAIRS = ("extra_interval", "behind_interval", "right_behind_interval", "answered_behind_interval")

Interval = tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRun:
    """One way on one kind of text at one ratio, over all examples.

    Attributes:
        kind, ratio, way, method, context, examples: what was measured; method: the way's settings as text.
        held: entries over tokens; size: bytes over those of the uncompressed cache; both means.
        loss: nats per following token, of a task per token of the right answers; extra: of it beyond the uncompressed
            prompt's; behind: beyond SemToken's (negative: better than it); both with 95 % intervals of the paired mean.
        right: share of the answers' tokens; right_behind: SemToken's share less this one's, with its interval.
        answered: share of the questions whose greedily generated answer begins with the right one; answered_behind as
            right_behind.
        seconds: median CPU (on an accelerator: clock) seconds to the first token; speedup: median of the paired ratios
            of the uncompressed prompt's to these.
        model, fingerprint, settings, versions, device, command: as in :class:`tenuto.records.diffusion.Run`.
        pieces: of SemToken, the first example in pieces of text, with the sizes of the spans they became.
    """

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
    model: str = ""
    fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    task: str = TASK
    command: str = ""
    pieces: list[tuple[str, int]] = field(default_factory=list)

    @property
    def policy(self) -> str:
        """What reports call it."""
        return self.way

    def row(self) -> dict[str, Any]:
        """As a JSON object, without the text."""
        told = asdict(self)
        del told["pieces"]
        return told


def write_prompt_run(run: PromptRun, folder: Path) -> Path:
    """Write one record, beside and renamed."""
    name = file_name(f"{run.kind}-{run.ratio:g}-{run.context}-{run.way}")
    return write_record(run, folder / f"{PROMPT_FILES}{name}.json")


def _from(raw: dict[str, Any]) -> PromptRun:
    pairs = {name: None if raw[name] is None else tuple(raw[name]) for name in PAIRS}
    pieces = [(str(text), int(size)) for text, size in raw.get("pieces", [])]
    return PromptRun(**{**raw, **pairs, "pieces": pieces})


def read_prompt_runs(folder: Path) -> list[PromptRun]:
    """All PromptRuns in a folder: by kind of text, context and ratio, the baseline first; none if it holds none.

    Raises:
        InputError: a record is damaged.
    """
    runs = [read_record(path, PromptRun, _from) for path in sorted(folder.glob(f"{PROMPT_FILES}*.json"))]
    order = {"none": 0, "semtoken": 1}
    return sorted(runs, key=lambda run: (run.kind, run.context, -run.ratio, order.get(run.way, 2), run.way))
