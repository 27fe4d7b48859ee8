"""KVRun: the record of one KV policy at one budget and context length. Reports read it and never see a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tenuto.records.files import Kind, file_name, read_kind, write_record
from tenuto.records.header import Header
from tenuto.records.timing import Timing

__all__ = ["BASELINE", "KIND", "KVRun", "Score", "read_kv_runs", "write_kv_run"]

BASELINE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The result of one task.

    Attributes:
        value: mean over examples; interval: 95 % interval of that mean; count: examples.
        unit: "accuracy" in [0, 1], "perplexity", "match" (share of tokens, in [0, 1]) or "nats"; "perplexity" and
            "nats" are better where lower.
        loss: mean paired difference to the uncached model on the same examples, positive where it is worse (for
            perplexity: of the negative log-likelihood, in nats); ``loss_interval`` its 95 % interval. None: baseline.
    """

    value: float
    interval: tuple[float, float]
    count: int
    unit: str
    loss: float | None = None
    loss_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KVRun(Header):
    """What was measured for one policy at one budget and context length.

    Attributes:
        policy: as text; "none" is the uncompressed cache (transformers' DynamicCache).
        budget: as text, "full" for the baseline; context: tokens of the contexts, at most.
        scores: task name -> Score, in the order they were asked for.
        bytes_held: of the cache after the context was compressed, counted from its tensors, mean over examples.
        bytes_full: what DynamicCache holds for the same contexts.
        peak_bytes: the most the cache held, just before a compression.
        ttft: seconds from a context to its first token, beside the baseline's, in turn.
        decode: CPU seconds per decoded token after the context, beside the baseline's, in turn.
        heads: ``[layers][kv_heads]`` entries kept over tokens of the context, mean over examples.
        survivors: ``[layers][bins]`` share of the tokens in each bin of the context (from its beginning) that some head
            kept, mean over examples.
        withheld: why there are no numbers: the policy does not work here; None if it does.
    """

    family: str = "kv"
    policy: str
    budget: str
    context: int
    scores: Mapping[str, Score] = field(default_factory=dict)
    bytes_held: int = 0
    bytes_full: int = 0
    peak_bytes: int = 0
    ttft: Timing | None = None
    decode: Timing | None = None
    heads: list[list[float]] = field(default_factory=list)
    survivors: list[list[float]] = field(default_factory=list)
    withheld: str | None = None

    @property
    def held(self) -> float | None:
        """Bytes held over those of the full cache; None if nothing was measured."""
        return self.bytes_held / self.bytes_full if self.bytes_full else None

    @property
    def ttft_s(self) -> float | None:
        """Median seconds to the first token."""
        return median(self.ttft.seconds) if self.ttft else None

    @property
    def decode_cpu_ms(self) -> float | None:
        """Median CPU milliseconds per decoded token."""
        return 1000 * median(self.decode.seconds) if self.decode else None

    def rows(self) -> list[dict[str, Any]]:
        """The flat JSON objects that ``--json`` prints: one per task, or one without a task if none worked."""
        kept = ("policy", "budget", "context", "model", "fingerprint", "settings", "versions", "device", "withheld")
        shared = {name: getattr(self, name) for name in kept}
        numbers = {
            "bytes_held": self.bytes_held,
            "bytes_full": self.bytes_full,
            "peak_bytes": self.peak_bytes,
            "ttft_s": self.ttft_s,
            "decode_cpu_ms": self.decode_cpu_ms,
            "ttft_ratio": median(self.ttft.ratios) if self.ttft else None,
            "decode_ratio": median(self.decode.ratios) if self.decode else None,
            "command": self.command,
        }
        if not self.scores:
            return [{**shared, "task": None, "score": None, **numbers}]
        return [
            {**shared, "task": name, "score": score.value, **_flat(score), **numbers}
            for name, score in self.scores.items()
        ]


def _flat(score: Score) -> dict[str, Any]:
    renamed = {"interval": "score_interval", "count": "examples"}
    return {renamed.get(name, name): value for name, value in asdict(score).items() if name != "value"}


def write_kv_run(run: KVRun, folder: Path) -> Path:
    """Write one record, beside and renamed."""
    return write_record(run, folder / f"kv-{file_name(run.policy)}-{file_name(run.budget)}-{run.context}.json")


KIND = Kind("kv", KVRun, lambda run: (run.context, run.policy != BASELINE, run.policy, run.bytes_held))


def read_kv_runs(folder: Path) -> list[KVRun]:
    """All KVRuns in a folder: by context, the baseline first, then by policy and bytes held; none if it holds none.

    Raises:
        InputError: the folder does not exist, or a record is damaged.
    """
    return read_kind(folder, KIND)
