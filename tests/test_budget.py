"""ErrorBudget and MemoryBudget: what is left, how it is written, and what is refused."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

import tenuto
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError


def test_spending_and_renewing() -> None:
    budget = tenuto.ErrorBudget(rtol=0.1)
    assert (budget.left, budget.spent) == (0.1, 0.0)
    later = budget.spend(0.03).spend(0.04)
    assert later.left == pytest.approx(0.03)
    assert later.spend(1.0).left == 0
    renewed = later.renew()
    assert (renewed.left, renewed.spent, renewed.spent_total) == (0.1, 0.0, pytest.approx(0.07))
    limited = tenuto.ErrorBudget(rtol=0.1, total=0.3)
    assert limited.most == 0.1
    assert limited.spend(0.05, 0.28).renew().most == pytest.approx(0.02)
    assert limited.spend(0.4).most == 0
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


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (MemoryBudget.keep(0.25), "keep=0.25"),
        (MemoryBudget.keep(1), "keep=1.0"),
        (MemoryBudget.keep(1e-05), "keep=1e-05"),
        (MemoryBudget.tokens(512), "tokens=512"),
        (MemoryBudget.bytes(20 * 2**20), "bytes=20MiB"),
        (MemoryBudget.bytes(3 * 2**30), "bytes=3GiB"),
        (MemoryBudget.bytes(1000), "bytes=1000"),
    ],
)
def test_memory_budgets_are_text(budget: MemoryBudget, text: str) -> None:
    assert str(budget) == text
    assert MemoryBudget.parse(text) == budget
    assert hash(MemoryBudget.parse(f" {text} ")) == hash(budget)


def test_bytes_may_have_a_unit() -> None:
    assert MemoryBudget.parse("bytes=1.5KiB") == MemoryBudget.bytes(1536)
    assert MemoryBudget.parse("bytes=12B") == MemoryBudget.bytes(12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep=0", "above 0 and at most 1"),
        ("keep=1.2", "above 0 and at most 1"),
        ("tokens=0", "give at least 1"),
        ("tokens=2.5", "tokens are a whole number"),
        ("bytes=0", "give at least 1"),
        ("kep=0.5", "'kep' is no kind of budget. Did you mean 'keep'?"),
        ("keep=0.5MiB", "is no budget. Write keep=0.25"),
        ("keep", "is no budget. Write keep=0.25"),
        ("keep=1.2.3", "is no budget. Write keep=0.25"),
    ],
)
def test_what_is_no_memory_budget(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        MemoryBudget.parse(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
