"""Charge equilibration: electronegativities in, charges and electrostatic energy out.

    E(q) = sum_i (chi_i - F.R_i) q_i + 1/2 sum_ij q_i J_ij q_j,   sum_i q_i = Q

E is stationary in q under the constraint, so its derivatives need no derivative of q:
dE/dchi_i = q_i and dE/dR is taken at fixed charges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kqeq_md.charges.cholesky import solve_dense
from kqeq_md.charges.conjugate_gradient import (
    Solution,
    conjugate_gradient,
    refined_conjugate_gradient,
    residual_scale,
)
from kqeq_md.charges.constraints import Constraint
from kqeq_md.charges.field import field_gradient, field_potential
from kqeq_md.charges.history import ChargeHistory
from kqeq_md.charges.preconditioner import Preconditioner
from kqeq_md.charges.stability import SAFE, check_stability
from kqeq_md.electrostatics.coulomb import SMALL, Coulomb, CoulombGradient
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.gaussians import self_interaction
from kqeq_md.errors import ChargeError
from kqeq_md.neighbours import NeighbourList
from kqeq_md.structure import Floats, Structure

UNHEATED = 1e-6
"""Relative residual from which on errors do no work. What iterations that start from earlier steps leave of a residual
lags behind the motion: its forces heat a melt of NaCl by 6e-3, 5e-4, -9e-5 meV/atom/ps at 1e-4, 1e-5, 1e-6. Iterations
go on to a tenth of the tolerance, but not beyond this."""


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """Charges (e, shape (n,)), the energy of each atom (eV, shape (n,)), q_i times half of its potentials, and how
    many products with J the solution took beside the first one (0: solved by factorisation)."""

    charges: Floats
    energies: Floats
    iterations: int


class ChargeSolver:
    """Equilibrates the charges of one structure after the other, each starting from what the last ones teach.

    Small open structures are solved by factorisation, all others by conjugate gradients. What is remembered, charges
    of earlier steps and the preconditioner, decides how fast the answer comes and changes it by no more than the
    tolerance.

    Args:
        tolerance: largest accepted residual |P (J q + b)|, relative to |P b| + |J_ii Q / n|, with P the projection on
            allowed charge transfers and b = chi - F.R.
        threads: how many work at once.
    """

    def __init__(self, tolerance: float, threads: int = 1) -> None:
        self.tolerance, self.threads = tolerance, threads
        self._goal = min(tolerance, max(0.1 * tolerance, UNHEATED))
        self._history = ChargeHistory(self._goal)
        self._preconditioner = Preconditioner(threads)
        self._checked = -1

    def solve(
        self,
        structure: Structure,
        coulomb: Coulomb,
        neighbours: NeighbourList,
        electronegativity: Floats,
        constraint: Constraint,
    ) -> Equilibrium:
        """Minimise E(q).

        Args:
            structure: field and positions, in the order of `neighbours`; so are all other arguments and the result.
            coulomb: the operator J.
            neighbours: pairs of the structure, up to RADIUS of the preconditioner at least.
            electronegativity: chi_i, eV/e, shape (n,).
            constraint: sums of charges.

        Raises:
            FieldError: a field along a periodic axis.
            ChargeError: no minimum, or tolerance not reached.
        """
        applied = field_potential(structure)
        linear = electronegativity if applied is None else electronegativity + applied
        if isinstance(coulomb, DirectCoulomb) and len(linear) <= SMALL:
            solution = self._factorise(coulomb, linear, constraint)
        else:
            solution = self._iterate(structure, coulomb, neighbours, linear, constraint)
        energies = solution.charges * (linear + 0.5 * solution.induced)
        return Equilibrium(solution.charges, energies, solution.iterations)

    def _factorise(self, coulomb: DirectCoulomb, linear: Floats, constraint: Constraint) -> Solution:
        matrix = coulomb.matrix()
        charges = solve_dense(matrix, linear, constraint)
        induced = matrix @ charges
        residual = float(np.linalg.norm(constraint.project(induced + linear)))
        scale = residual_scale(linear, np.diag(matrix), constraint)
        rounding = 1e-12 * float(np.linalg.norm(induced) + np.linalg.norm(linear))
        target = max(self.tolerance * scale, rounding)
        if not residual <= target:
            raise ChargeError(f"charges must reach a residual of {target:.3g} eV/e, got {residual:.3g}")
        return Solution(charges, induced, 0)

    def _iterate(
        self,
        structure: Structure,
        coulomb: Coulomb,
        neighbours: NeighbourList,
        linear: Floats,
        constraint: Constraint,
    ) -> Solution:
        guess = self._history.guess(structure, constraint)
        inverse = self._preconditioner.at(coulomb, neighbours, follows=guess is not None)
        softest = float(coulomb.hardness.min())
        if softest < 0.0 or (softest < SAFE and (guess is None or neighbours.builds != self._checked)):
            check_stability(coulomb.apply, inverse.apply, constraint)
            self._checked = neighbours.builds
        start = np.zeros(len(linear)) if guess is None else guess
        scale = residual_scale(linear, self_interaction(coulomb.hardness, coulomb.gaussian_width), constraint)
        problem = (linear, constraint, start, scale, self._goal)
        if softest < SAFE or coulomb.roughness == 0.0:
            solution = conjugate_gradient(coulomb.apply, inverse.apply, *problem)
        else:
            solution = refined_conjugate_gradient(coulomb, inverse.apply, *problem)
        self._preconditioner.judge(solution.iterations)
        self._history.add(structure, constraint, solution.charges)
        return solution


def electrostatic_gradient(structure: Structure, coulomb: CoulombGradient, charges: Floats) -> tuple[Floats, Floats]:
    """dE/dR (n, 3), eV/Angstrom, and dE/d(strain) (3, 3), eV, at fixed charges and electronegativities."""
    grad_r, grad_strain = coulomb.gradient(charges)
    field_r, field_strain = field_gradient(structure, charges)
    return grad_r + field_r, grad_strain + field_strain
