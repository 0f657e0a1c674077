"""How far the Hamiltonian is from losing its minimum.

Gaussian charges repel themselves: without hardness J has no negative eigenvalue for charge transfer, so that the
smallest hardness is a bound for the smallest eigenvalue. Only where it says too little the eigenvalue is computed (at
every step for negative hardness, else with every new neighbour list), by inverse iteration: x <- (P J P)^-1 x turns a
random vector towards the softest charge transfer. On the way conjugate gradients meet negative curvature if there is
any, since a random vector has a part in every direction.
"""

from __future__ import annotations

import numpy as np

from kqeq_md.charges.conjugate_gradient import Operator, conjugate_gradient
from kqeq_md.charges.constraints import Constraint
from kqeq_md.errors import ChargeError

SAFE = 0.1
"""eV/e^2. With every hardness above it J is stiff enough, whatever the positions."""

SOFTEST = 0.01
"""eV/e^2. Errors of J are amplified by its inverse: below it no accuracy could be promised."""


def check_stability(apply: Operator, precondition: Operator, constraint: Constraint) -> None:
    """Refuse a J whose smallest eigenvalue for allowed charge transfers is not above SOFTEST.

    Raises:
        ChargeError: the Hamiltonian is indefinite, or nearly so.
    """
    n = len(constraint.group)
    if n == len(constraint.charges):
        return  # nothing can flow
    free = Constraint(constraint.group, np.zeros(len(constraint.charges)))
    x = free.project(np.random.default_rng(0).normal(size=n))
    for _ in range(3):
        x /= np.linalg.norm(x)
        solution = conjugate_gradient(apply, precondition, -x, free, np.zeros(n), scale=1.0, tolerance=1e-6)
        eigenvalue = float(solution.charges @ solution.induced / (solution.charges @ solution.charges))
        x = solution.charges
    if eigenvalue < SOFTEST:
        raise ChargeError(
            f"the softest charge transfer must cost at least {SOFTEST:g} eV/e^2, got {eigenvalue:.3g}: `hardness` is "
            "too low, or atoms with large `gaussian_width` are too close"
        )
