"""ReuseRun: the record of one store of prefixes. Reports read it and never see a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenuto.records.files import Kind, file_name, read_kind, write_record
from tenuto.records.header import Header

__all__ = ["KIND", "ReuseRun", "read_reuse_runs", "write_reuse_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseRun(Header):
    """One store and codec.

    Attributes:
        store, codec: of the row; context: tokens of the prompt; restored: those of them that were loaded.
        bytes_stored: of the prompt's pages; bytes_full: of its cache in the model's dtype.
        recompute_s, restore_s: seconds to the first token, medians of turns taken one after the other.
        speedup, speedup_low, speedup_high: median and range of their ratios; cpu_speedup: of processor seconds.
        logits_error: largest difference of the first token's logits; same_text: whether the next 32 tokens, taken
            greedily, are the same.
        perplexity, perplexity_computed: of the 64 tokens that follow in the text, after a loaded and a computed prompt.
    """

    family: str = "reuse"
    store: str
    codec: str
    context: int
    restored: int
    bytes_stored: int
    bytes_full: int
    recompute_s: float
    restore_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    cpu_speedup: float
    logits_error: float
    same_text: bool
    perplexity: float
    perplexity_computed: float

    @property
    def policy(self) -> str:
        """What reports call it."""
        return f"{self.store} {self.codec}"

    @property
    def share(self) -> float:
        """Bytes stored over those of the prompt's cache."""
        return self.bytes_stored / self.bytes_full

    @property
    def perplexity_change(self) -> float:
        """Perplexity after a loaded prompt over that after a computed one, less 1."""
        return self.perplexity / self.perplexity_computed - 1

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def write_reuse_run(run: ReuseRun, folder: Path) -> Path:
    """Write one record, beside and renamed."""
    return write_record(run, folder / f"reuse-{file_name(f'{run.store}-{run.codec}-{run.context}')}.json")


KIND = Kind("reuse", ReuseRun, lambda run: (run.context, run.store, -run.bytes_stored, run.codec))


def read_reuse_runs(folder: Path) -> list[ReuseRun]:
    """All ReuseRuns in a folder, by context and store, the largest first; none if it holds none.

    Raises:
        InputError: the folder does not exist, or a record is damaged.
    """
    return read_kind(folder, KIND)
