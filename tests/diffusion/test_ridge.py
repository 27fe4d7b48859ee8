"""Gram matrices against least squares on the rows themselves."""

from __future__ import annotations

import pytest
import torch

from tenuto.diffusion.ridge import Gram

ROWS, INPUTS, OUTPUTS = 200, 5, 3


def rows(seed: int = 0, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, INPUTS, generator=generator)
    y = x @ torch.randn(INPUTS, OUTPUTS, generator=generator)
    return x, y + noise * torch.randn(ROWS, OUTPUTS, generator=generator)


def gram(x: torch.Tensor, y: torch.Tensor, parts: int = 1) -> Gram:
    found = Gram(x.shape[1], y.shape[1])
    for piece_x, piece_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        found.add(piece_x, piece_y)
    return found


def test_without_ridge_it_is_least_squares() -> None:
    x, y = rows()
    expected = torch.linalg.lstsq(x.double(), y.double()).solution
    torch.testing.assert_close(gram(x, y).solve(0.0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_the_ridge_is_relative_to_each_column(ridge: float) -> None:
    x, y = rows()
    x = x * torch.tensor([1e-3, 1.0, 1e3, 7.0, 0.1])
    penalty = ridge**0.5 * torch.diag(x.double().norm(dim=0))
    stacked = torch.cat([x.double(), penalty]), torch.cat([y.double(), torch.zeros(INPUTS, OUTPUTS)])
    expected = torch.linalg.lstsq(*stacked).solution
    torch.testing.assert_close(gram(x, y).solve(ridge), expected, rtol=1e-4, atol=1e-6)


def test_units_of_a_column_do_not_matter() -> None:
    x, y = rows()
    units = torch.tensor([1e-3, 1.0, 1e3, 7.0, 0.1])
    plain, scaled = gram(x, y).solve(0.1), gram(x * units, y).solve(0.1)
    torch.testing.assert_close(scaled * units[:, None].double(), plain, rtol=1e-4, atol=1e-6)


def test_rows_may_come_in_pieces_and_in_half_precision() -> None:
    x, y = rows()
    torch.testing.assert_close(gram(x, y, parts=7).solve(1e-5), gram(x, y).solve(1e-5), rtol=1e-4, atol=1e-5)
    half = gram(x.bfloat16(), y.bfloat16())
    assert half.rows == ROWS
    torch.testing.assert_close(half.solve(1e-5), gram(x, y).solve(1e-5), rtol=0.05, atol=0.05)


def test_no_rows_and_columns_of_zeros_give_zeros() -> None:
    assert torch.equal(Gram(2, 3).solve(1e-5), torch.zeros(2, 3, dtype=torch.float64))
    x, y = rows()
    x[:, 1] = 0
    found = gram(x, y).solve(1e-5)
    assert found.isfinite().all() and found[1].abs().max() < 1e-6


def test_full_rank_loses_nothing() -> None:
    solved = gram(*rows())
    down, up = solved.solve_low_rank(1e-5, OUTPUTS)
    assert (down.shape, up.shape) == ((INPUTS, OUTPUTS), (OUTPUTS, OUTPUTS))
    torch.testing.assert_close(down @ up, solved.solve(1e-5))


def test_low_rank_finds_a_low_rank_truth() -> None:
    x, _ = rows()
    truth = torch.outer(torch.arange(1.0, 6.0), torch.tensor([1.0, -2.0, 3.0]))
    down, up = gram(x, x @ truth).solve_low_rank(0.0, 1)
    assert (down.shape, up.shape) == ((INPUTS, 1), (1, OUTPUTS))
    torch.testing.assert_close((down @ up).float(), truth, rtol=1e-4, atol=1e-4)


def test_low_rank_predicts_better_than_cutting_the_map() -> None:
    x, y = rows(noise=2.0)
    x = x * torch.tensor([0.1, 1.0, 10.0, 1.0, 1.0])
    solved = gram(x, y)
    down, up = solved.solve_low_rank(0.0, 1)
    u, s, v = torch.linalg.svd(solved.solve(0.0), full_matrices=False)
    cut = s[0] * torch.outer(u[:, 0], v[0])
    assert (x.double() @ down @ up - y).norm() < (x.double() @ cut - y).norm()
