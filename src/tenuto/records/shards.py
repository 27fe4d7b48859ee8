"""ShardsRun: the record of one placement and selector of a sharded KV cache. Reports read it and never see a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

from tenuto.records.files import Kind, file_name, read_kind, write_record
from tenuto.records.header import Header

__all__ = ["BASELINE", "KIND", "ShardsRun", "read_shards_runs", "write_shards_run"]

BASELINE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsRun(Header):
    """What was measured; texts are given token by token after their context.

    Attributes:
        placement: "none" is the model's own cache (DynamicCache) on one process; selector: "all" reads everything.
        codec: of old pages; schedule: in words, "none" if all pages stay in memory.
        perplexity: of the tokens after the contexts; own: with the model's own cache, on the same tokens.
        kl: mean Kullback-Leibler divergence from the model's own cache, in nats.
        logit_gap: the largest difference of a logit; logit_largest: the largest logit; same: share of steps whose
            likeliest token is the same.
        bytes_held, bytes_below, bytes_sent: per rank: keys and values in memory and in the lower tier at the end,
            counted from tensors, and what decoding sent; bytes_full: of all tokens, uncoded.
        collectives: of decoding, of one rank; steps: decoding steps.
        tokens_read, tokens_held, pages_read, pages_held, pages_fetched, tokens_deleted: added up over steps, rows and
            layers.
        dropped: attention mass left out, None where it was not measured; balance: largest load of a shard over the
            mean.
        tokens_per_s, own_tokens_per_s: decoding; stall_s: of it, waiting for the lower tier, the slowest rank.
    """

    family: str = "shards"
    placement: str
    selector: str
    perplexity: float
    own: float
    tokens_per_s: float
    own_tokens_per_s: float
    bytes_held: list[int]
    bytes_full: int
    codec: str = "raw"
    schedule: str = "none"
    kl: float = 0.0
    logit_gap: float = 0.0
    logit_largest: float = 0.0
    same: float = 1.0
    bytes_below: list[int] = field(default_factory=list)
    bytes_sent: list[int] = field(default_factory=list)
    collectives: int = 0
    steps: int = 0
    tokens_read: int = 0
    tokens_held: int = 0
    pages_read: int = 0
    pages_held: int = 0
    pages_fetched: int = 0
    tokens_deleted: int = 0
    dropped: float | None = 0.0
    balance: float = 1.0
    stall_s: float = 0.0

    @property
    def policy(self) -> str:
        """Placement, selector and what else there is, as the page names the row."""
        if self.placement == BASELINE:
            return BASELINE
        more = [text for text in (self.codec, self.schedule) if text not in ("raw", "none")]
        return ", ".join([self.placement, self.selector, *more])

    @property
    def loss(self) -> float:
        """Negative log-likelihood beyond that with the model's own cache, in nats per token."""
        return log(self.perplexity) - log(self.own)

    @property
    def read(self) -> float:
        """Share of the tokens held that a decoding step read."""
        return self.tokens_read / self.tokens_held if self.tokens_held else 1.0

    @property
    def sent(self) -> float:
        """Bytes that a rank sent in one collective."""
        return max(self.bytes_sent, default=0) / self.collectives if self.collectives else 0.0

    def row(self) -> dict[str, Any]:
        """The flat JSON object that ``--json`` prints."""
        kept = {name: getattr(self, name) for name in (*Header.__slots__, *self.__slots__)}
        return {"policy": self.policy, **kept, "loss": self.loss, "read": self.read, "bytes_per_collective": self.sent}


def write_shards_run(run: ShardsRun, folder: Path) -> Path:
    """Write one record, beside and renamed."""
    return write_record(run, folder / f"shards-{file_name(run.policy)}.json")


def _order(run: ShardsRun) -> tuple[Any, ...]:
    return run.placement != BASELINE, run.placement, run.selector != "all", run.selector


KIND = Kind("shards", ShardsRun, _order)


def read_shards_runs(folder: Path) -> list[ShardsRun]:
    """All ShardsRuns in a folder, the baseline first, then by placement and selector; none if it holds none.

    Raises:
        InputError: the folder does not exist, or a record is damaged.
    """
    return read_kind(folder, KIND)
