"""Projected preconditioned conjugate gradients for b.q + 1/2 q.J q under sums of charges.

The gradient P (J q + b) is made zero in the space of allowed charge transfers, P the projection of `constraints`; the
preconditioner P M P keeps the search there. J is only ever multiplied with a vector.

Reference: Gould, Hribar, Nocedal, SIAM J. Sci. Comput. 23, 1376 (2001), doi:10.1137/S1064827598345667.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kqeq_md.charges.cholesky import INDEFINITE
from kqeq_md.charges.constraints import Constraint
from kqeq_md.electrostatics.coulomb import Coulomb
from kqeq_md.errors import ChargeError
from kqeq_md.structure import Floats

ITERATIONS = 500
"""Far more than any well-posed system takes: tens for the largest from a cold start."""

ROUNDING = 1e-14
"""Relative rounding of a product with J: no residual can be asked to be smaller."""

Operator = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class Solution:
    """Charges (e, shape (n,)), their potential J q (eV/e, shape (n,)), and the products with J that it took beside the
    first one (0: solved by factorisation)."""

    charges: Floats
    induced: Floats
    iterations: int


def residual_scale(linear: Floats, diagonal: Floats, constraint: Constraint) -> float:
    """What a residual is small against: |P b|, and |J_ii q_i| of charges that are spread evenly, eV/e."""
    even = constraint.enforce(np.zeros(len(linear)))
    return constraint.norm(constraint.project(linear)) + constraint.norm(diagonal * even)


def largest_residual(induced: Floats, linear: Floats, constraint: Constraint, scale: float, tolerance: float) -> float:
    """The norm of a residual that is small enough, eV/e: `tolerance` times `scale`, but never below rounding."""
    return max(tolerance * scale, ROUNDING * (constraint.norm(induced) + constraint.norm(linear)))


def beginning(
    apply: Operator, linear: Floats, constraint: Constraint, start: Floats, scale: float
) -> tuple[Floats, Floats, Floats]:
    """Charges to begin with, J q and P (J q + b), each of shape (n,).

    A guess that is worse than charges spread evenly is not used: digits would be lost for good.
    """
    charges = constraint.enforce(start)
    induced = apply(charges) if constraint.norm(charges) != 0.0 else np.zeros_like(charges)
    gradient = constraint.project(induced + linear)
    if constraint.norm(start) != 0.0 and constraint.norm(gradient) > scale:
        return beginning(apply, linear, constraint, np.zeros_like(start), scale)
    return charges, induced, gradient


def check_curvature(curvature: float, along: str) -> None:
    """Refuse a direction along which the energy has no minimum.

    Raises:
        ChargeError: `curvature` is not positive, or not a number.
    """
    if not curvature > 0.0:
        if not np.isfinite(curvature):
            raise ChargeError("charges must be finite: look at the positions, the total charge and the field")
        raise ChargeError(f"{INDEFINITE} (curvature {curvature:.3g} along a {along})")


def correction_goal(roughness: float, size: float, target: float) -> tuple[float, bool]:
    """How far a correction by the rough product is to go from a residual of `size`, and whether it is the last one:
    whether what the rough product leaves is less than half of `target`."""
    error = roughness * size
    last = error <= 0.5 * target
    return target - error if last else max(0.5 * target, 4.0 * error), last


def conjugate_gradient(
    apply: Operator,
    precondition: Operator,
    linear: Floats,
    constraint: Constraint,
    start: Floats,
    scale: float,
    tolerance: float,
) -> Solution:
    """Minimise b.q + 1/2 q.J q until the projected gradient is below `tolerance` times `scale`.

    Args:
        apply: J, symmetric, positive definite for allowed charge transfers.
        precondition: M, symmetric positive definite.
        linear: b, eV/e, shape (n,).
        constraint: sums of charges.
        start: a guess of the charges, e, shape (n,); one that is worse than charges spread evenly is not used.
        scale: of `residual_scale`, eV/e.
        tolerance: relative residual.

    Raises:
        ChargeError: a direction without positive curvature; no convergence within 500 iterations.
    """
    charges, induced, gradient = beginning(apply, linear, constraint, start, scale)
    residual = -gradient
    target = largest_residual(induced, linear, constraint, scale, tolerance)
    direction, slope = np.zeros_like(charges), 1.0
    for iteration in range(ITERATIONS + 1):
        size = constraint.norm(residual)
        if size <= target:
            return Solution(charges, induced, iteration)
        steepest = constraint.project(precondition(residual))
        previous, slope = slope, constraint.dot(residual, steepest)
        direction = steepest + (slope / previous) * direction
        response = apply(direction)
        curvature = constraint.dot(direction, response)
        check_curvature(curvature, "charge transfer")
        step = slope / curvature
        charges = charges + step * direction
        induced = induced + step * response
        residual = residual - step * constraint.project(response)
    raise ChargeError(
        f"charges must reach a residual of {target:.3g} eV/e within {ITERATIONS} iterations, got {size:.3g}: "
        "`hardness` is close to the limit of stability"
    )


def refined_conjugate_gradient(
    coulomb: Coulomb,
    precondition: Operator,
    linear: Floats,
    constraint: Constraint,
    start: Floats,
    scale: float,
    tolerance: float,
) -> Solution:
    """`conjugate_gradient` with few exact products: corrections x of the charges are found with the rough J'.

        r = P (J q + b),   J' x = -r,   q <- q + x,   |P (J - J') x| <= roughness |r|

    A correction that leaves less than half of what is tolerated is the last one, and J' x stands for J x; otherwise
    the residual is computed anew. Should the rough operator fail to help, the exact one goes on alone.
    """
    charges, induced, gradient = beginning(coulomb.apply, linear, constraint, start, scale)
    size = constraint.norm(gradient)
    target = largest_residual(induced, linear, constraint, scale, tolerance)
    unchanged = constraint.homogeneous
    iterations = 0
    while not size <= target:
        goal, last = correction_goal(coulomb.roughness, size, target)
        step = conjugate_gradient(
            coulomb.apply_roughly, precondition, gradient, unchanged, np.zeros_like(charges), size, goal / size
        )
        charges = charges + step.charges
        iterations += step.iterations
        if last:
            return Solution(charges, induced + step.induced, iterations)
        previous, induced = size, coulomb.apply(charges)
        iterations += 1
        gradient = constraint.project(induced + linear)
        size = constraint.norm(gradient)
        if not size <= 0.5 * previous:
            return conjugate_gradient(coulomb.apply, precondition, linear, constraint, charges, scale, tolerance)
    return Solution(charges, induced, iterations)
