"""What may be spent: error in an output, or memory for a cache."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from tenuto.errors import InputError, closest

__all__ = ["ErrorBudget", "MemoryBudget", "read_bytes"]

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_EXAMPLES = "Write keep=0.25, tokens=512 or bytes=20MiB."


def read_bytes(text: str) -> int:
    """The number of bytes a text such as ``10GiB``, ``1.5MiB`` or ``4096`` names.

    Raises:
        InputError: another text, or less than one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB)?\s*", text)
    count = int(float(found[1]) * _UNITS[found[2] or "B"]) if found else 0
    if count < 1:
        raise InputError(f"{text!r} is no size. Write it as 10GiB, 512MiB or 4096.")
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """Relative error that estimates may have, per span of blocks and guidance branch.

    Attributes:
        rtol: the bounds that a gate charges for estimates add up to no more between two computed steps, and the true
            error of a single one is expected below it: a fraction of the norm of the hidden states (0.05 is five per
            cent).
        total: the largest errors to be expected in one generation add up to no more, infinite by default.
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
        """What bounds may still add up to until the next computed step, never below zero."""
        return max(self.rtol - self.spent, 0.0)

    @property
    def most(self) -> float:
        """The most that one estimate may be off: ``rtol``, or what is left of the total."""
        return max(min(self.rtol, self.total - self.spent_total), 0.0)

    def spend(self, bound: float, worst: float | None = None) -> ErrorBudget:
        """The budget after an estimate with this bound on its error; ``worst``, by default the bound, is charged to the
        total."""
        worst = bound if worst is None else worst
        return replace(self, spent=self.spent + bound, spent_total=self.spent_total + worst)

    def renew(self) -> ErrorBudget:
        """The budget after a computed step: what the generation has spent stays spent."""
        return replace(self, spent=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """How much of a KV cache may be held; make one with :meth:`keep`, :meth:`tokens` or :meth:`bytes`.

    Attributes:
        kind: what is counted. ``keep``: the fraction of all tokens seen; ``tokens``: tokens per layer and KV head, on
            average, in each row of the batch; ``bytes``: everything the cache holds, all rows together.
        amount: how much of it.
    """

    kind: Literal["keep", "tokens", "bytes"]
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in ("keep", "tokens", "bytes"):
            raise InputError(f"{self.kind!r} is no kind of budget.{closest(self.kind, ('keep', 'tokens', 'bytes'))}")
        if self.kind == "keep" and not 0 < self.amount <= 1:
            raise InputError(f"keep={self.amount:g} is no budget: the kept fraction is above 0 and at most 1.")
        if self.kind != "keep" and not (self.amount >= 1 and math.isfinite(self.amount)):
            raise InputError(f"{self.kind}={self.amount:g} is no budget: give at least 1.")

    @classmethod
    def keep(cls, fraction: float) -> MemoryBudget:
        """The fraction of all tokens seen that is kept, in (0, 1]."""
        return cls(kind="keep", amount=float(fraction))

    @classmethod
    def tokens(cls, count: int) -> MemoryBudget:
        """Tokens per layer and KV head, on average."""
        return cls(kind="tokens", amount=int(count))

    @classmethod
    def bytes(cls, count: int) -> MemoryBudget:
        """Bytes of the whole cache: keys, values, codes, positions, weights and buffers. Tokens that are written come
        on top until the next prompt, unless the policy compresses while it decodes (``attach(every=)``)."""
        return cls(kind="bytes", amount=int(count))

    @classmethod
    def parse(cls, text: str) -> MemoryBudget:
        """The budget a text such as ``keep=0.25``, ``tokens=512`` or ``bytes=20MiB`` names.

        Raises:
            InputError: another text, or an amount that is no budget.
        """
        found = re.fullmatch(r"\s*(\w+)\s*=\s*([\d.]+(?:e-?\d+)?)\s*(B|KiB|MiB|GiB)?\s*", text)
        if not found or (found[3] and found[1] != "bytes"):
            raise InputError(f"{text!r} is no budget. {_EXAMPLES}")
        kind, number, unit = found.groups()
        try:
            amount = float(number)
        except ValueError as error:
            raise InputError(f"{text!r} is no budget. {_EXAMPLES}") from error
        if not math.isfinite(amount):
            raise InputError(f"{text!r} is no budget: the amount is not finite.")
        if kind == "tokens" and amount != int(amount):
            raise InputError(f"{text!r} is no budget: tokens are a whole number.")
        amount = amount if kind == "keep" else int(amount * _UNITS[unit or "B"])
        return cls(kind=kind, amount=amount)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.kind != "bytes":
            return f"{self.kind}={self.amount!r}"
        unit = next(name for name in ("GiB", "MiB", "KiB", "B") if self.amount % _UNITS[name] == 0)
        return f"bytes={int(self.amount) // _UNITS[unit]}{'' if unit == 'B' else unit}"
