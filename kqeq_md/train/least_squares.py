"""Linear least squares that never holds all rows."""

from __future__ import annotations

import numpy as np
from scipy.linalg import qr, solve_triangular

from kqeq_md.structure import Floats


class LeastSquares:
    """min_x |A x - y|^2 + sum_k (x_k / prior_k)^2 by QR; rows come in blocks and only their triangle is kept.

    Args:
        prior: standard deviation of each unknown around zero, shape (columns,).
    """

    def __init__(self, prior: Floats) -> None:
        self._columns = len(prior)
        self._triangle = np.column_stack([np.diag(1.0 / prior), np.zeros(len(prior))])
        self._waiting: list[Floats] = []

    def add(self, rows: Floats, targets: Floats) -> None:
        """Append rows of A, shape (r, columns), and of y, shape (r,), each already divided by its sigma."""
        self._waiting.append(np.column_stack([rows, targets]))
        if sum(len(block) for block in self._waiting) > 4 * self._columns:
            self._compress()

    def _compress(self) -> None:
        stacked = np.concatenate([self._triangle, *self._waiting])
        self._triangle = qr(stacked, mode="r", overwrite_a=True, check_finite=False)[0][: self._columns + 1]
        self._waiting = []

    def solve(self) -> Floats:
        """x, shape (columns,)."""
        self._compress()
        square = self._triangle[: self._columns]
        x: Floats = solve_triangular(square[:, :-1], square[:, -1])
        return x
