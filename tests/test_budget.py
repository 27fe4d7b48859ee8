"""ErrorBudget: what is left, and what is refused."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

import tenuto
from tenuto.errors import InputError


def test_spending_and_renewing() -> None:
    budget = tenuto.ErrorBudget(rtol=0.1)
    assert (budget.left, budget.spent) == (0.1, 0.0)
    later = budget.spend(0.03).spend(0.04)
    assert later.left == pytest.approx(0.03)
    assert later.spend(1.0).left == 0
    renewed = later.renew()
    assert (renewed.left, renewed.spent, renewed.spent_total) == (0.1, 0.0, pytest.approx(0.07))
    assert tenuto.ErrorBudget(rtol=0.1, total=0.08).spend(0.07).renew().left == pytest.approx(0.01)
    assert budget.spent == 0, "a budget is a value"


def test_no_allowance() -> None:
    assert tenuto.ErrorBudget(rtol=0.0).left == 0
    assert tenuto.ErrorBudget(rtol=math.inf).spend(1e9).left == math.inf


@pytest.mark.parametrize("rtol", [-0.1, math.nan])
def test_what_is_no_budget(rtol: float) -> None:
    with pytest.raises(InputError, match=rf"^rtol={rtol} is not an error budget\. It must be zero or more"):
        tenuto.ErrorBudget(rtol=rtol)


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        tenuto.ErrorBudget(rtol=0.1).spent = 1.0  # type: ignore[misc]
