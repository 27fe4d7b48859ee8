"""What may be spent: error in an output, or memory for a cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tenuto.errors import InputError

__all__ = ["ErrorBudget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """Relative error that may accumulate between two computed steps.

    Attributes:
        rtol: the allowance, a fraction of the norm of the hidden states (0.05 is five per cent).
        spent: what estimates since the last computed step have used of it.
    """

    rtol: float
    spent: float = 0.0

    def __post_init__(self) -> None:
        if not self.rtol >= 0:
            raise InputError(f"rtol={self.rtol} is not an error budget. It must be zero or more, for example 0.05.")

    @property
    def left(self) -> float:
        """What may still be spent, never below zero."""
        return max(self.rtol - self.spent, 0.0)

    def spend(self, error: float) -> ErrorBudget:
        """The budget after an estimate with this predicted error."""
        return replace(self, spent=self.spent + error)

    def renew(self) -> ErrorBudget:
        """The budget after a computed step."""
        return replace(self, spent=0.0)
