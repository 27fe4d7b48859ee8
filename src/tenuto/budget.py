"""What may be spent: error in an output, or memory for a cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tenuto.errors import InputError

__all__ = ["ErrorBudget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """Relative error that estimates may have, and add up to over a whole generation.

    Attributes:
        rtol: the most that one estimate may be off, and the predicted errors between two computed steps may add up to:
            a fraction of the norm of the hidden states (0.05 is five per cent).
        total: the most that the errors of a generation may add up to, infinite by default.
        spent: what estimates since the last computed step have used; spent_total: what all of them have used.
    """

    rtol: float
    total: float = float("inf")
    spent: float = 0.0
    spent_total: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("total", self.total)):
            if not value >= 0:
                raise InputError(f"{name}={value} is not an error budget. It must be zero or more, for example 0.05.")

    @property
    def left(self) -> float:
        """What may still be spent, never below zero."""
        return max(min(self.rtol - self.spent, self.total - self.spent_total), 0.0)

    def spend(self, error: float) -> ErrorBudget:
        """The budget after an estimate with this predicted error."""
        return replace(self, spent=self.spent + error, spent_total=self.spent_total + error)

    def renew(self) -> ErrorBudget:
        """The budget after a computed step: what the generation has spent stays spent."""
        return replace(self, spent=0.0)
