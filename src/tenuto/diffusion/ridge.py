"""Linear maps fitted in closed form from streamed Gram matrices: data is seen once and never kept."""

from __future__ import annotations

import torch

from tenuto.errors import CalibrationError

__all__ = ["Gram"]

TRIES = 5


class Gram:
    """``X^T X`` and ``X^T Y``, added up in double precision.

    Solves ``min_W |X W - Y|^2 + ridge * sum_i |X_i|^2 |W_i|^2`` (each column is penalised by its own size, so columns
    may have any unit) by one Cholesky factorisation.

    Args:
        inputs, outputs: numbers of columns of X and Y.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.rows = 0

    def add(self, x: torch.Tensor, y: torch.Tensor, weight: float = 1.0) -> None:
        """Rows ``x [n, inputs]`` and ``y [n, outputs]``, each counted ``weight`` times; products are in float32."""
        x, y = x.float(), y.float()
        self.xx += weight * (x.T @ x).double().cpu()
        self.xy += weight * (x.T @ y).double().cpu()
        self.rows += len(x)

    def solve(self, ridge: float) -> torch.Tensor:
        """``W [inputs, outputs]`` in float64, zero without rows."""
        if self.rows == 0:
            return torch.zeros_like(self.xy)
        sizes = self.xx.diagonal().sqrt().clamp_min(1e-12)
        system = self.xx / torch.outer(sizes, sizes)
        for _ in range(TRIES):  # rounding in the products can outweigh a small ridge: ten times more, then again
            system.diagonal().add_(ridge + 1e-12)
            factor, failed = torch.linalg.cholesky_ex(system)
            if not failed:
                return torch.cholesky_solve(self.xy / sizes[:, None], factor) / sizes[:, None]
            ridge *= 10
        raise CalibrationError("A Gram matrix is not positive definite: the calibration data holds NaN or infinity.")

    def solve_low_rank(self, ridge: float, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``(A [inputs, rank], B [rank, outputs])``: the best ``A B`` of that rank (reduced-rank regression).

        The full solution is projected onto the leading directions of its own predictions' covariance.
        """
        full = self.solve(ridge)
        covariance = self.xy.T @ full
        _, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        leading = vectors[:, -rank:]
        return full @ leading, leading.T
