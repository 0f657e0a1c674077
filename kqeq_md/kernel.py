"""Sparse kernels on the normalised power spectrum u = p / |p|, their reverse, and their form of low rank.

    y_ic = sum_m k(u_i, u_m) w_mc,   k(u, u') = (u . u')^zeta

over the sparse points u_m (unit vectors, stored) of the element of atom i. The columns c share one kernel matrix: one
for the electronegativity, one for the short-range energy.

For zeta = 2 a column is a quadratic form, and its eigenvectors b_k serve in place of the sparse points:

    y = u^T W u,   W = sum_m w_m u_m u_m^T = sum_k lambda_k b_k b_k^T   ->   y = sum_k lambda_k (b_k . u)^2

It is again a sparse kernel, with points b_k and weights lambda_k. Leaving out small lambda_k gives a low rank, whose
forces are still the exact derivatives of its energy, at a cost that the number of sparse points does not touch.

Reference: Bartok and Csanyi, Int. J. Quantum Chem. 115, 1051 (2015), doi:10.1002/qua.24927.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats

ROUNDING = float(np.finfo(np.float64).eps)

NEGLIGIBLE = 1e-7
"""Of the largest singular value of the sparse points: directions that hardly occur, and that rounding would fill."""


@dataclass(frozen=True)
class SparseKernel:
    """Points and weights of each element.

    Attributes:
        points: shapes (m, size), m differing from element to element; none where an element has no kernel.
        weights: shapes (m, columns).
    """

    points: tuple[Floats, ...]
    weights: tuple[Floats, ...]


def sparse_kernel(unit: Floats, sparse_points: Floats, zeta: float) -> Floats:
    """k_nm = (unit_n . u_m)^zeta, shape (n, m)."""
    k: Floats = (unit @ sparse_points.T) ** zeta
    return k


@compiled
def power(x: float, zeta: float) -> float:
    """x^zeta by multiplication where zeta is whole; overlaps below zero are rounding where it is not."""
    whole = int(zeta)
    if whole != zeta:
        return max(x, 0.0) ** zeta
    out = 1.0
    for _ in range(whole):
        out *= x
    return out


@compiled
def weighted_powers(overlap: Floats, weights: Floats, zeta: float) -> Floats:
    """y_c,k = sum_m w_mc o_mk^zeta of overlaps o, shape (m, lanes); shape (columns, lanes)."""
    y = np.zeros((weights.shape[1], overlap.shape[1]))
    for m in range(len(overlap)):
        for column in range(weights.shape[1]):
            w = weights[m, column]
            if zeta == 2.0:
                for k in range(overlap.shape[1]):
                    y[column, k] += w * (overlap[m, k] * overlap[m, k])
            else:
                for k in range(overlap.shape[1]):
                    y[column, k] += w * power(overlap[m, k], zeta)
    return y


@compiled
def weighted_powers_vjp(overlap: Floats, weights: Floats, zeta: float, grad_y: Floats) -> Floats:
    """dE/do = zeta o^(zeta - 1) sum_c w_mc dE/dy_c, shape of o, from dE/dy, shape (columns, lanes)."""
    out = np.zeros(overlap.shape)
    for m in range(len(overlap)):
        for column in range(weights.shape[1]):
            w = weights[m, column]
            for k in range(overlap.shape[1]):
                out[m, k] += w * grad_y[column, k]
        if zeta == 2.0:
            for k in range(overlap.shape[1]):
                out[m, k] *= 2.0 * overlap[m, k]
        else:
            for k in range(overlap.shape[1]):
                out[m, k] *= zeta * power(overlap[m, k], zeta - 1.0)
    return out


def eigenpoints(points: Floats, weights: Floats, typical: bool) -> tuple[Floats, Floats]:
    """Points b_k, shape (k, size), and weights lambda_k, shape (k,), that give one column for zeta = 2, largest first.

    With the singular value decomposition P = U S V^T of the sparse points, W = V (S U^T w U S) V^T. The eigenvectors of
    the matrix in brackets are orthonormal b_k, and since |u| = 1 leaving one out changes y by |lambda_k| at most: those
    are left out that the rounding of the sum over m hides anyhow.

    Args:
        points: u_m, shape (m, size).
        weights: w_m, shape (m,).
        typical: scale the b_k instead such that they are orthonormal in the mean over the sparse points,
            mean_m (b_k . u_m) (b_l . u_m) = delta_kl: lambda_k is what the term contributes where there was data.
    """
    u, s, v = np.linalg.svd(points, full_matrices=False)
    inside = s > (NEGLIGIBLE if typical else ROUNDING) * s.max(initial=0.0)
    u, s, v = u[:, inside], s[inside], v[inside]
    scale = s / np.sqrt(len(points)) if typical else np.ones_like(s)
    root = u * (s * scale)
    values, vectors = np.linalg.eigh((root.T * weights) @ root)
    order = np.argsort(-np.abs(values))
    order = order[np.abs(values[order]) > ROUNDING * np.abs(weights).sum()]
    return (vectors[:, order] / scale[:, None]).T @ v, values[order]


def fewest_points(kernel: SparseKernel) -> SparseKernel:
    """The same kernel of one column for zeta = 2, to rounding; its eigenvectors are never more than the points."""
    given = zip(kernel.points, kernel.weights, strict=True)
    parts = [eigenpoints(points, weights[:, 0], typical=False) for points, weights in given]
    return SparseKernel(tuple(p for p, _ in parts), tuple(w.reshape(-1, 1) for _, w in parts))


def eigen_kernel(kernel: SparseKernel) -> SparseKernel:
    """The same kernel for zeta = 2 by the eigenpoints of each column, per element what contributes most first."""
    points, weights = [], []
    for given, columns in zip(kernel.points, kernel.weights, strict=True):
        parts = [eigenpoints(given, w, typical=True) for w in columns.T]
        values = np.concatenate([value for _, value in parts])
        column = np.repeat(np.arange(len(parts)), [len(value) for _, value in parts])
        order = np.argsort(-np.abs(values), kind="stable")
        points.append(np.concatenate([b for b, _ in parts])[order])
        weights.append(values[order, None] * np.eye(len(parts))[column[order]])
    return SparseKernel(tuple(points), tuple(weights))


def largest(kernel: SparseKernel, rank: int) -> SparseKernel:
    """The `rank` points per element, in the mean, with the largest weights of an `eigen_kernel`."""
    size = np.concatenate([np.abs(w).sum(axis=1) for w in kernel.weights])  # each point serves one column
    keep = np.zeros(len(size), dtype=bool)
    keep[np.argsort(-size, kind="stable")[: rank * len(kernel.points)]] = True
    kept = np.split(keep, np.cumsum([len(points) for points in kernel.points])[:-1])
    return SparseKernel(
        tuple(points[rows] for points, rows in zip(kernel.points, kept, strict=True)),
        tuple(w[rows] for w, rows in zip(kernel.weights, kept, strict=True)),
    )


def low_rank(kernel: SparseKernel, rank: int) -> SparseKernel:
    """The kernel for zeta = 2 with `rank` points per element in the mean, those that contribute most where data was."""
    return largest(eigen_kernel(kernel), rank)
