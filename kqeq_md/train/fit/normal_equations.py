"""Linear least squares that never holds all rows, with as many threads as there are, and the same digits with any.

    H = A^T A,   b = A^T y,   c = y^T y,   x = argmin |A x - y|^2 + sum_k (x_k / prior_k)^2 = (H + P)^-1 b

with P = diag(1 / prior^2). The sums stay, so that other priors cost one factorisation, and so does the error on rows
that were summed elsewhere: |A' x - y'|^2 = x.H'x - 2 b'.x + c'. Squaring A squares its condition number: kernels have
to be whitened (`sparse.whitening`), which bounds it by the square of what one label tells over what the prior does.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations_with_replacement

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.optimize import lsq_linear

from kqeq_md.errors import ConfigError
from kqeq_md.machine.threads import in_parallel, kernel_threads
from kqeq_md.structure import Floats

TILE = 256
"""Columns whose products one thread makes at once. Every tile is summed by itself, by whichever thread."""


def penalty(x: Floats, prior: Floats | float) -> float:
    """sum_k (x_k / prior_k)^2, for unknowns with a prior each, or one for all."""
    return float(((x / prior) ** 2).sum())


class NormalEquations:
    """H, b and c of the rows so far.

    Args:
        columns: number of unknowns.

    Attributes:
        rows: how many there have been.
    """

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self._h, self._b, self._c = np.zeros((columns, columns)), np.zeros(columns), 0.0
        starts = range(0, columns, TILE)
        self._tiles = [(slice(i, i + TILE), slice(j, j + TILE)) for i, j in combinations_with_replacement(starts, 2)]

    def add(self, rows: Floats, targets: Floats) -> None:
        """Take rows of A, shape (r, columns), and of y, shape (r,), each already divided by its sigma."""
        in_parallel(partial(self._add_tile, rows), self._tiles, kernel_threads())
        self._b += targets @ rows
        self._c += float(targets @ targets)
        self.rows += len(rows)

    def _add_tile(self, rows: Floats, tile: tuple[slice, slice]) -> None:
        i, j = tile
        self._h[i, j] += rows[:, i].T @ rows[:, j]

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Those of all rows of both."""
        out = NormalEquations(len(self._b))
        out._h, out._b, out._c = self._h + other._h, self._b + other._b, self._c + other._c
        out.rows = self.rows + other.rows
        return out

    def solve(self, prior: Floats, centre: Floats | None = None, bounds: tuple[Floats, Floats] | None = None) -> Floats:
        """x, shape (columns,), for priors of that shape around `centre` (zero if it is None).

        With `bounds`, the lowest and highest values of the last unknowns, shapes (k,), it is the minimum within them:
        with H + P = R^T R these unknowns z have the problem |R_zz z - y_z|^2 for themselves, and the others follow.

        Raises:
            ConfigError: the priors are too wide for the precision of the sums.
        """
        matrix = np.triu(self._h)
        matrix[np.diag_indices_from(matrix)] += prior**-2.0
        scale = 1.0 / np.sqrt(np.diag(matrix))
        matrix *= scale[:, None]
        matrix *= scale
        try:
            factor = cholesky(matrix, lower=False, overwrite_a=True, check_finite=False)
        except LinAlgError:
            raise ConfigError(
                "`fit` must have priors that the labels do not outweigh by more than 16 digits: narrow `prior_...`, "
                "or widen `sigma_...`"
            ) from None
        right = self._b if centre is None else self._b + prior**-2.0 * centre
        y = solve_triangular(factor, scale * right, trans="T", check_finite=False)
        x: Floats = scale * solve_triangular(factor, y, check_finite=False)
        if bounds is None:
            return x
        first = len(x) - len(bounds[0])
        if ((x[first:] < bounds[0]) | (x[first:] > bounds[1])).any():
            last = slice(first, None)
            x[last] = _within(factor[last, last] / scale[last], y[last], *bounds)
            rest = y[:first] - factor[:first, last] @ (x[last] / scale[last])
            x[:first] = scale[:first] * solve_triangular(factor[:first, :first], rest, check_finite=False)
        return x

    def error(self, x: Floats) -> float:
        """|A x - y|^2."""
        upper = np.triu(self._h, 1)
        product = upper @ x + x @ upper + np.diag(self._h) * x
        return max(float(x @ product - 2.0 * self._b @ x) + self._c, 0.0)


def _within(a: Floats, y: Floats, low: Floats, high: Floats) -> Floats:
    """argmin |a z - y|^2 for low <= z <= high, shape (k,)."""
    if np.array_equal(low, high):
        return low.copy()
    z: Floats = lsq_linear(a, y, (low, high), method="bvls").x
    return np.clip(z, low, high)
