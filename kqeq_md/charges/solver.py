"""Charges that minimise a quadratic energy under a total charge."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from kqeq_md.errors import ChargeError
from kqeq_md.structure import Floats


def solve_total_charge(matrix: Floats, linear: Floats, total_charge: float, tolerance: float) -> Floats:
    """Minimise b.q + 1/2 q.J.q subject to sum_i q_i = Q.

    A Householder reflection turns (1, ..., 1) into the first axis; the others span the subspace of charge
    transfers, on which alone J has to be positive definite. There it is factorised by Cholesky.

    Args:
        matrix: J, eV/e^2, shape (n, n), symmetric.
        linear: b, eV/e, shape (n,).
        total_charge: Q, e.
        tolerance: largest accepted relative residual |P (J q + b)| / (|J q| + |b|), P the projection on zero total
            charge.

    Returns:
        q, e, shape (n,).

    Raises:
        ChargeError: J is not positive definite for charge transfer, or the residual exceeds the tolerance.
    """
    n = len(linear)
    mean = np.full(n, total_charge / n)
    if n == 1:
        return mean
    axis = np.full(n, 1.0 / np.sqrt(n))
    axis[0] += 1.0
    beta = 2.0 / (axis @ axis)
    gradient = linear + matrix @ mean
    half = beta * (matrix @ axis)
    half -= 0.5 * beta * (half @ axis) * axis
    reflected = matrix - np.outer(axis, half) - np.outer(half, axis)
    try:
        factor = cho_factor(reflected[1:, 1:], lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise ChargeError(
            "the hardness matrix is not positive definite for charge transfer: `hardness` is too negative, "
            "or atoms with large `gaussian_width` are too close"
        ) from None
    transfer = np.zeros(n)
    transfer[1:] = -cho_solve(factor, (gradient - beta * (axis @ gradient) * axis)[1:], check_finite=False)
    charges: Floats = mean + transfer - beta * (axis @ transfer) * axis
    induced = matrix @ charges
    potential = induced + linear
    residual = np.linalg.norm(potential - potential.mean())
    scale = np.linalg.norm(induced) + np.linalg.norm(linear)
    if not residual <= tolerance * scale:
        raise ChargeError(f"charges must reach a relative residual of {tolerance:g}, got {residual / scale:.3g}")
    return charges
