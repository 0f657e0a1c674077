"""Sparse kernels on the normalised power spectrum, and their reverse.

    y_i = sum_m k(p_i, p_m) w_m,   k(p_i, p_m) = (p_i . p_m / |p_i|)^zeta

over the sparse points p_m (unit vectors, stored) of the element of atom i. The columns of w share one kernel
matrix: one for the electronegativity, one for the short-range energy.

Reference: Bartok and Csanyi, Int. J. Quantum Chem. 115, 1051 (2015), doi:10.1002/qua.24927.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kqeq_md.structure import Floats


def normalise(p: Floats) -> tuple[Floats, Floats]:
    """p / |p| per row, and |p|; shapes (n, size), (n,)."""
    length = np.linalg.norm(p, axis=1)
    return p / length[:, None], length


def normalise_vjp(unit: Floats, length: Floats, grad_unit: Floats) -> Floats:
    """dE/dp from dE/d(p / |p|): the part along p falls away."""
    along = np.einsum("nd,nd->n", unit, grad_unit)
    out: Floats = (grad_unit - along[:, None] * unit) / length[:, None]
    return out


def sparse_kernel(unit: Floats, sparse_points: Floats, zeta: int) -> Floats:
    """k_nm = (unit_n . p_m)^zeta, shape (n, m)."""
    k: Floats = (unit @ sparse_points.T) ** zeta
    return k


def predict(
    unit: Floats,
    species: NDArray[np.int64],
    sparse_points: Sequence[Floats],
    weights: Sequence[Floats],
    zeta: int,
) -> Floats:
    """y_n = K w with the sparse points and weights of each atom's element; shape (n, columns of w)."""
    out = np.zeros((len(unit), weights[0].shape[1]))
    for element, (points, w) in enumerate(zip(sparse_points, weights, strict=True)):
        rows = np.flatnonzero(species == element)
        out[rows] = sparse_kernel(unit[rows], points, zeta) @ w
    return out


def predict_vjp(
    unit: Floats,
    species: NDArray[np.int64],
    sparse_points: Sequence[Floats],
    weights: Sequence[Floats],
    zeta: int,
    grad_y: Floats,
) -> Floats:
    """dE/d(unit), shape (n, size), from dE/dy, shape (n, columns of w)."""
    out = np.zeros_like(unit)
    for element, (points, w) in enumerate(zip(sparse_points, weights, strict=True)):
        rows = np.flatnonzero(species == element)
        overlap = unit[rows] @ points.T
        out[rows] = (zeta * overlap ** (zeta - 1) * (grad_y[rows] @ w.T)) @ points
    return out
