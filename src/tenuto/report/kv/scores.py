"""Scores of KV Runs as people read them: in which unit, with how many digits, and which end is better."""

from __future__ import annotations

from dataclasses import dataclass

from tenuto.records.kv import Score
from tenuto.report import units

__all__ = ["KINDS", "ScoreUnit", "loss", "shown", "worse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreUnit:
    """How a unit of :class:`tenuto.records.kv.Score` is shown.

    Attributes:
        unit: in words, with the sign of what it is shown in.
        better: "higher" or "lower".
        factor: from the record to the page, of the score; ``loss_factor`` of the loss.
        digits: after the point, of the score; ``loss_digits`` of the loss.
        help: the explanation.
    """

    unit: str
    better: str
    factor: float
    digits: int
    loss_factor: float
    loss_digits: int
    help: str


KINDS = {
    "accuracy": ScoreUnit(
        unit="accuracy, %",
        better="higher",
        factor=100.0,
        digits=1,
        loss_factor=100.0,
        loss_digits=1,
        help="Share of right answers, mean over the examples; the loss is in percentage points.",
    ),
    "match": ScoreUnit(
        unit="tokens alike, %",
        better="higher",
        factor=100.0,
        digits=1,
        loss_factor=100.0,
        loss_digits=1,
        help="Share of tokens that are those of the full cache; the loss is in percentage points.",
    ),
    "perplexity": ScoreUnit(
        unit="perplexity",
        better="lower",
        factor=1.0,
        digits=2,
        loss_factor=1.0,
        loss_digits=3,
        help="How uncertain the model is about real text. The loss is that of the negative log-likelihood, in nats "
        "per token.",
    ),
    "nats": ScoreUnit(
        unit="nats",
        better="lower",
        factor=1.0,
        digits=3,
        loss_factor=1.0,
        loss_digits=3,
        help="In nats per token, as is the loss; lower is better.",
    ),
}
"""Every unit a Score may have."""


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def shown(score: Score) -> tuple[str, str]:
    """The value and its interval: ``("92.5", "88.0 to 97.0")``."""
    kind = KINDS[score.unit]
    low, high = (_number(v * kind.factor, kind.digits) for v in score.interval)
    return _number(score.value * kind.factor, kind.digits), units.span(low, high)


def loss(score: Score) -> str:
    """The paired loss with its interval: ``loss 4.0, 1.0 to 7.0``; empty if there is none."""
    if score.loss is None:
        return ""
    kind = KINDS[score.unit]
    text = f"loss {_number(score.loss * kind.loss_factor, kind.loss_digits)}"
    if score.loss_interval is None:
        return text
    low, high = (_number(v * kind.loss_factor, kind.loss_digits) for v in score.loss_interval)
    return f"{text}, {units.span(low, high)}"


def worse(score: Score) -> bool:
    """Whether the whole interval of the loss lies above 0: worse than chance explains."""
    return score.loss_interval is not None and score.loss_interval[0] > 0
