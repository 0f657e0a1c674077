"""The dense solution: Cholesky factorisation on the subspace of allowed charge transfer."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from kqeq_md.charges.constraints import Constraint
from kqeq_md.errors import ChargeError
from kqeq_md.structure import Floats

INDEFINITE = (
    "the hardness matrix is not positive definite for charge transfer: `hardness` is too negative, "
    "or atoms with large `gaussian_width` are too close"
)


def solve_dense(matrix: Floats, linear: Floats, constraint: Constraint) -> Floats:
    """Minimise b.q + 1/2 q.J.q under the constraint.

    In each group a Householder reflection turns (1, ..., 1) into the first atom's axis; the other axes span the
    allowed charge transfers, on which alone J has to be positive definite.

    Args:
        matrix: J, eV/e^2, shape (n, n), symmetric.
        linear: b, eV/e, shape (n,).
        constraint: sums of charges.

    Returns:
        q, e, shape (n,).

    Raises:
        ChargeError: J is not positive definite for charge transfer.
    """
    n, n_groups = len(linear), len(constraint.charges)
    group = constraint.group
    first = np.full(n_groups, n)
    np.minimum.at(first, group, np.arange(n))
    axes = np.zeros((n, n_groups))  # v of the reflections 1 - v v^T / (1 + v_first), of length sqrt(2 + 2 v_first)
    axes[np.arange(n), group] = 1.0 / np.sqrt(constraint.sizes[group])
    axes[first, np.arange(n_groups)] += 1.0
    beta = 1.0 / axes[first, np.arange(n_groups)]
    transfers = np.delete(np.arange(n), first)
    mean = constraint.enforce(np.zeros(n))
    if len(transfers) == 0:
        return mean

    half = (matrix @ axes) * beta
    half -= 0.5 * axes @ ((axes * beta).T @ half)
    reflected = matrix - axes @ half.T - half @ axes.T
    try:
        factor = cho_factor(reflected[np.ix_(transfers, transfers)], lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise ChargeError(INDEFINITE) from None
    gradient = linear + matrix @ mean
    gradient -= axes @ (beta * (axes.T @ gradient))
    transfer = np.zeros(n)
    transfer[transfers] = -cho_solve(factor, gradient[transfers], check_finite=False)
    transfer -= axes @ (beta * (axes.T @ transfer))
    return mean + transfer
