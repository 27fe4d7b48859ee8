"""FlopMeter: operations of the calls that were made, by hand-counted matrices."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tenuto.diffusion.flops import FlopMeter

WEIGHT = torch.ones(3, 5)
BLOCK = 2 * 4 * 3 * 5  # x [4, 3] @ WEIGHT


def block(rows: int = 4) -> torch.Tensor:
    return torch.ones(rows, 3) @ WEIGHT


def call(
    meter: FlopMeter, signature: object = "a", skipped: Sequence[int] = (), beside: int = 0
) -> tuple[float, float]:
    """A denoiser of three blocks and one product of its own."""
    with meter.call(signature) as count:
        block()
        for index in range(3):
            for _ in range(beside):
                count.beside(block)
            if index in skipped:
                count.skip(index)
            else:
                count.run(index, lambda: block(), (), {})
    return count.totals()


def test_executed_operations() -> None:
    meter = FlopMeter()
    assert call(meter) == (4 * BLOCK, 4 * BLOCK)
    assert call(meter, skipped=[1, 2]) == (4 * BLOCK, 2 * BLOCK)
    assert call(meter) == (4 * BLOCK, 4 * BLOCK)


def test_each_shape_has_its_own_count() -> None:
    meter = FlopMeter()
    call(meter)
    with meter.call("b") as count:
        count.run(0, block, (8,), {})
    assert count.totals() == (2 * BLOCK, 2 * BLOCK)
    assert call(meter, skipped=[0]) == (4 * BLOCK, 3 * BLOCK)


def test_the_policy_s_own_work_is_executed_but_not_saved() -> None:
    meter = FlopMeter()
    assert call(meter, beside=1) == (4 * BLOCK, 7 * BLOCK)
    assert call(meter, skipped=[0, 1, 2], beside=1) == (4 * BLOCK, 4 * BLOCK)


def test_attention_is_counted() -> None:
    meter = FlopMeter()
    heads = torch.ones(1, 2, 6, 8)
    with meter.call("attention") as count:
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    assert count.totals()[0] == 2 * (2 * 2 * 6 * 6 * 8)  # two products of [6, 8] x [8, 6] in two heads


def test_a_call_that_failed_is_counted_again() -> None:
    meter = FlopMeter()
    with pytest.raises(ZeroDivisionError), meter.call("a") as count:
        count.run(0, block, (), {})
        _ = 1 / 0
    assert call(meter, skipped=[]) == (4 * BLOCK, 4 * BLOCK)
    assert call(meter, skipped=[0]) == (4 * BLOCK, 3 * BLOCK)
