"""From the outcomes of single rounds to the records of rows: means, intervals, paired losses, timings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from scipy.stats import binomtest

from tenuto.bench.kv.job import Round
from tenuto.bench.likelihood import AGREEMENT, KL, PERPLEXITY
from tenuto.bench.reading import CacheEntry, CacheSize
from tenuto.records.intervals import mean_interval
from tenuto.records.kv import KVRun, Score
from tenuto.records.timing import Timing

__all__ = ["Outcome", "summarise"]

UNITS = {PERPLEXITY: "perplexity", AGREEMENT: "match", KL: "nats"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one row did in one round.

    Attributes:
        seconds: to the first token; decode_seconds: per decoded token.
        held: of the cache after the context; scores: by name, perplexity as nats.
    """

    seconds: float
    decode_seconds: float
    held: CacheSize
    scores: dict[str, float] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def read(cls, told: dict[str, Any]) -> Outcome:
        """From JSON."""
        return cls(**{**told, "held": CacheSize(**told["held"])})


def summarise(
    shared: KVRun, entries: Sequence[CacheEntry], context: int, found: Mapping[Round, Sequence[Outcome]]
) -> list[KVRun]:
    """One record per row for one context length, the baseline (the first row) first."""
    rounds = [outcomes for (length, _, _), outcomes in found.items() if length == context]
    base = [outcomes[0] for outcomes in rounds]
    runs = []
    for index, entry in enumerate(entries):
        mine = [outcomes[index] for outcomes in rounds]
        run = replace(
            shared,
            policy=entry.name,
            budget=entry.budget_text,
            context=context,
            scores=_scores(mine, base, baseline=index == 0),
            bytes_held=round(_mean([it.held.bytes_held for it in mine])),
            bytes_full=round(_mean([it.held.bytes_full for it in mine])),
            peak_bytes=max(it.held.peak_bytes for it in mine),
            ttft=_timing([it.seconds for it in mine], [it.seconds for it in base]),
            decode=_timing([it.decode_seconds for it in mine], [it.decode_seconds for it in base]),
            heads=_average([it.held.heads for it in mine]),
            survivors=_average([it.held.survivors for it in mine]),
        )
        runs.append(run)
    return runs


def _timing(mine: Sequence[float], base: Sequence[float]) -> Timing:
    return Timing(seconds=tuple(mine), baseline_seconds=tuple(base))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _average(tables: Sequence[list[list[float]]]) -> list[list[float]]:
    """Cell by cell."""
    return [[_mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def _scores(mine: Sequence[Outcome], base: Sequence[Outcome], *, baseline: bool) -> dict[str, Score]:
    names = list(dict.fromkeys(name for outcome in base for name in outcome.scores))
    found = {}
    for name in names:
        pairs = [(a.scores[name], b.scores[name]) for a, b in zip(mine, base, strict=True) if name in b.scores]
        found[name] = _score(UNITS.get(name, "accuracy"), pairs, baseline)
    return found


def _interval(values: Sequence[float], unit: str) -> tuple[float, float]:
    """95 % interval of the mean: Wilson's where all is right or wrong, else Student's, shares cut to [0, 1]."""
    if unit == "accuracy" and set(values) <= {0.0, 1.0}:
        share = binomtest(round(sum(values)), len(values)).proportion_ci(0.95, method="wilson")
        return float(share.low), float(share.high)
    low, high = mean_interval(values) or (_mean(values), _mean(values))
    return (max(low, 0.0), min(high, 1.0)) if unit in ("accuracy", "match") else (low, high)


def _score(unit: str, pairs: Sequence[tuple[float, float]], baseline: bool) -> Score:
    values = [value for value, _ in pairs]
    mean, lower_is_better = _mean(values), unit in ("perplexity", "nats")
    low, high = _interval(values, unit)
    worse = [a - b if lower_is_better else b - a for a, b in pairs]
    loss = None if baseline else _mean(worse)
    spread = None if baseline else mean_interval(worse) or (_mean(worse), _mean(worse))
    if unit == "perplexity":
        mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
    return Score(value=mean, interval=(low, high), count=len(pairs), unit=unit, loss=loss, loss_interval=spread)
