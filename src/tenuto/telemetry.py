"""What happened, as counted: nothing in a report is taken from settings.

An :class:`Event` is one decision about one span of blocks in one call of the denoiser. :class:`Telemetry` holds the
events of a run and the totals that reports need. FLOPs are those of the calls that were really made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Decision", "ErrorSums", "Event", "Telemetry"]

Decision = Literal["compute", "reuse", "forecast", "correct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One decision.

    Attributes:
        generation: how many generations the run had begun before this one.
        step: denoising steps since the generation began, from 0.
        branch: guidance branch: "cond", "uncond", "both", or "call0", "call1" where the model does not say.
        first_block, last_block: the span, block numbers counted over all block lists, both included.
        decision: "compute", "reuse", "forecast", or "correct" (an estimate corrected by computing some tokens).
        tokens: fraction of the tokens computed for a "correct" decision.
        statistic, critical: the gate's evidence, if it has any; reuse means statistic <= critical.
        error: relative error of the estimate (worst sample of the batch), measured in shadow mode only.
    """

    generation: int
    step: int
    branch: str
    first_block: int
    last_block: int
    decision: Decision
    tokens: float = 0.0
    statistic: float | None = None
    critical: float | None = None
    error: float | None = None

    @property
    def computed(self) -> float:
        """Fraction of the span's tokens that were computed."""
        return 1.0 if self.decision == "compute" else self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSums:
    """Errors of the estimates of one span and guidance branch in one generation, measured in shadow mode: the largest
    of one estimate, and their sum."""

    worst: float
    total: float


@dataclass(slots=True)
class Telemetry:
    """Events and totals of one run (one ``attach``).

    Attributes:
        events: every decision, in order.
        flops: floating point operations executed in the denoiser and in estimates (multiply and add count as two).
        full_flops: operations the denoiser alone would have executed without caching.
        cache_bytes: bytes of cached tensors held now; ``peak_cache_bytes`` the most ever held.
        cached: which part of each denoiser may be skipped, by its name: ``blocks`` (how many of each list),
            ``left_out`` (lists), ``parameters`` (the blocks' share), ``spans`` (how many are decided about).
    """

    events: list[Event] = field(default_factory=list)
    flops: float = 0.0
    full_flops: float = 0.0
    cache_bytes: int = 0
    peak_cache_bytes: int = 0
    cached: dict[str, dict[str, Any]] = field(default_factory=dict)

    def record(self, event: Event) -> None:
        self.events.append(event)

    def hold(self, delta: int) -> None:
        """Count ``delta`` more bytes held (negative when released)."""
        self.cache_bytes += delta
        self.peak_cache_bytes = max(self.peak_cache_bytes, self.cache_bytes)

    def counts(self) -> dict[str, int]:
        """Block executions by decision: a span of five blocks counts five."""
        totals: Counter[str] = Counter(compute=0, reuse=0, forecast=0, correct=0)
        for event in self.events:
            totals[event.decision] += event.last_block - event.first_block + 1
        return dict(totals)

    @property
    def reuse_ratio(self) -> float:
        """Fraction of block executions that were not computed, in [0, 1]; tokens count where a part was computed."""
        total = saved = 0.0
        for event in self.events:
            blocks = event.last_block - event.first_block + 1
            total += blocks
            saved += blocks * (1 - event.computed)
        return saved / total if total else 0.0

    @property
    def flops_speedup(self) -> float | None:
        """Operations without caching over operations executed; None if nothing was counted."""
        return self.full_flops / self.flops if self.flops else None

    def grid(self) -> list[list[float]]:
        """``[steps][blocks]``: fraction of calls that were not computed, over all generations and branches."""
        if not self.events:
            return []
        steps = 1 + max(event.step for event in self.events)
        blocks = 1 + max(event.last_block for event in self.events)
        skipped = [[0.0] * blocks for _ in range(steps)]
        seen = [[0] * blocks for _ in range(steps)]
        for event in self.events:
            for block in range(event.first_block, event.last_block + 1):
                seen[event.step][block] += 1
                skipped[event.step][block] += 1 - event.computed
        return [[s / n if n else 0.0 for s, n in zip(*rows, strict=True)] for rows in zip(skipped, seen, strict=True)]

    def decisions(self) -> list[list[str]]:
        """``[steps][blocks]`` of the first generation and branch: each event's decision."""
        if not self.events:
            return []
        first = self.events[0]
        mine = [e for e in self.events if (e.generation, e.branch) == (first.generation, first.branch)]
        steps, blocks = 1 + max(e.step for e in mine), 1 + max(e.last_block for e in mine)
        grid: list[list[str]] = [["compute"] * blocks for _ in range(steps)]
        for event in mine:
            for block in range(event.first_block, event.last_block + 1):
                grid[event.step][block] = event.decision
        return grid

    def errors(self) -> list[ErrorSums]:
        """Shadow mode's errors, per generation, branch and span."""
        found: dict[tuple[int, str, int], list[float]] = {}
        for event in self.events:
            if event.error is not None:
                found.setdefault((event.generation, event.branch, event.first_block), []).append(event.error)
        return [ErrorSums(worst=max(errors), total=sum(errors)) for errors in found.values()]

    def summary(self) -> dict[str, Any]:
        """Totals as JSON-ready values."""
        return {
            **self.counts(),
            "reuse_ratio": self.reuse_ratio,
            "flops": self.flops,
            "full_flops": self.full_flops,
            "flops_speedup": self.flops_speedup,
            "peak_cache_bytes": self.peak_cache_bytes,
            "generations": len({event.generation for event in self.events}),
            "cached": self.cached,
        }

    def records(self) -> list[dict[str, Any]]:
        """Every event as a dictionary."""
        return [asdict(event) for event in self.events]
