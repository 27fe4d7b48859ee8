"""Linear maps fitted in closed form from streamed Gram matrices: data is seen once and never kept."""

from __future__ import annotations

import torch

__all__ = ["Gram"]


class Gram:
    """``X^T X`` and ``X^T Y``, added up in double precision.

    Solves ``min_W |X W - Y|^2 + ridge * n * mean(diag(X^T X) / n) * |W|^2`` by one Cholesky factorisation.

    Args:
        inputs, outputs: numbers of columns of X and Y.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.rows = 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Rows ``x [n, inputs]`` and ``y [n, outputs]``; products are taken in float32."""
        x, y = x.float(), y.float()
        self.xx += (x.T @ x).double().cpu()
        self.xy += (x.T @ y).double().cpu()
        self.rows += len(x)

    def solve(self, ridge: float) -> torch.Tensor:
        """``W [inputs, outputs]`` in float64, zero without rows; ``ridge`` is relative to the mean of ``diag(X^T
        X)``."""
        if self.rows == 0:
            return torch.zeros_like(self.xy)
        system = self.xx.clone()
        system.diagonal().add_(ridge * float(system.diagonal().mean()) + 1e-12)
        return torch.cholesky_solve(self.xy, torch.linalg.cholesky(system))
