"""Charge equilibration: electronegativities in, charges and electrostatic energy out.

    E(q) = sum_i chi_i q_i + 1/2 sum_ij q_i J_ij q_j - F.mu

under the sums of `constraints`, or with the flows of `split` and their energy. E is stationary in what is free, so its
derivatives need no derivative of q: dE/dchi_i = q_i, dE/dq0_i = phi_i - F.r_i with phi = chi + J q, and dE/dR is taken
at fixed charges and flows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kqeq_md.charges.charge_model import Hold
from kqeq_md.charges.cholesky import solve_dense
from kqeq_md.charges.conjugate_gradient import (
    Solution,
    conjugate_gradient,
    refined_conjugate_gradient,
    residual_scale,
)
from kqeq_md.charges.constraints import Constraint
from kqeq_md.charges.field import field_gradient
from kqeq_md.charges.history import ChargeHistory
from kqeq_md.charges.preconditioner import Preconditioner
from kqeq_md.charges.split import (
    Bonds,
    SplitSolution,
    solve_split,
    solve_split_dense,
    split_conjugate_gradient,
    split_scale,
    split_size,
)
from kqeq_md.charges.stability import SAFE, check_stability
from kqeq_md.electrostatics.coulomb import SMALL, Coulomb
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.gaussians import self_interaction
from kqeq_md.errors import ChargeError
from kqeq_md.neighbours.half_list import Neighbours
from kqeq_md.ranks.halo import smallest, total
from kqeq_md.structure import Floats, Structure

UNHEATED = 1e-6
"""Relative residual from which on errors do no work. What iterations that start from earlier steps leave of a residual
lags behind the motion: its forces heat a melt of NaCl by 6e-3, 5e-4, -9e-5 meV/atom/ps at 1e-4, 1e-5, 1e-6. Iterations
go on to a tenth of the tolerance, but not beyond this."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The charges of one structure, to be equilibrated. Arrays are in the order of `neighbours`.

    Attributes:
        structure: positions, boundary.
        coulomb: the operator J.
        neighbours: pairs of the structure, up to RADIUS of the preconditioner at least.
        electronegativity: chi, eV/e, shape (n,).
        constraint: sums of charges, or for split charges of q0.
        field: F of `effective_field`, V/Angstrom, shape (3,).
        anchors: r of `field`, Angstrom, shape (n, 3).
        reference: q0, e, shape (n,), for split charges alone.
        bonds: the bonds of split charges; None where charges flow freely under the constraint.
    """

    structure: Structure
    coulomb: Coulomb
    neighbours: Neighbours
    electronegativity: Floats
    constraint: Constraint
    field: Floats
    anchors: Floats
    reference: Floats | None = None
    bonds: Bonds | None = None


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """Charges at the minimum.

    Attributes:
        charges: q, e, shape (n,).
        potential: phi = chi + J q, eV/e, shape (n,).
        energies: of each atom: q_i times chi_i and half of (J q)_i, half the energies of its bonds, and its part of
            -F.mu; eV, shape (n,).
        iterations: products with J beside the first one (0: solved by factorisation).
        dipole: mu of `field`, e Angstrom, shape (3,); its components mean something where a field would.
        tension: p_b / c_b of each bond (`Bonds.tension`), eV/e, shape (n_bonds,).
    """

    charges: Floats
    potential: Floats
    energies: Floats
    iterations: int
    dipole: Floats
    tension: Floats


class ChargeSolver:
    """Equilibrates the charges of one structure after the other, each starting from what the last ones teach.

    Small open structures are solved by factorisation, all others by conjugate gradients. What is remembered, charges
    of earlier steps and the preconditioner, decides how fast the answer comes and changes it by no more than the
    tolerance.

    Args:
        tolerance: largest accepted residual |P (J q + b)|, relative to |P b| + |J_ii Q / n|, with P the projection on
            allowed charge transfers and b = chi - F.R; for split charges that of the flows (`solve_split`).
        threads: how many work at once.
    """

    def __init__(self, tolerance: float, threads: int = 1) -> None:
        self.tolerance, self.threads = tolerance, threads
        self._goal = min(tolerance, max(0.1 * tolerance, UNHEATED))
        self._history = ChargeHistory(self._goal)
        self._preconditioner = Preconditioner(threads)
        self._checked = -1

    def solve(self, problem: Problem) -> Equilibrium:
        """Minimise E as the next step of a trajectory.

        Raises:
            ChargeError: no minimum, or tolerance not reached.
        """
        if _is_small(problem):
            return self.respond(problem)
        structure, constraint = problem.structure, problem.constraint
        guess = self._history.guess(structure, constraint)
        if problem.bonds is None:
            solution = self._iterate(problem, guess, follows=guess is not None)
            self._history.add(structure, constraint, solution.charges)
            self._preconditioner.judge(solution.iterations)
            return _free_equilibrium(problem, solution)
        split = self._iterate_split(problem, problem.bonds, guess)
        self._history.add(structure, constraint, split.induced)
        return _split_equilibrium(problem, problem.bonds, split)

    def carry(self, carried: Callable[[Floats], Floats] | None, structure: Structure, constraint: Constraint) -> None:
        """Go on with other atoms of the same structure on this rank; arguments as `ChargeHistory.carry` has them."""
        self._history.carry(carried, structure, constraint)

    def respond(self, problem: Problem) -> Equilibrium:
        """Minimise E for itself: what comes before and after has no part in it.

        Raises:
            ChargeError: no minimum, or tolerance not reached.
        """
        if problem.bonds is None:
            if _is_small(problem):
                return _free_equilibrium(problem, self._factorise(problem))
            return _free_equilibrium(problem, self._iterate(problem, None, follows=True))
        if _is_small(problem):
            return _split_equilibrium(problem, problem.bonds, self._factorise_split(problem, problem.bonds))
        return _split_equilibrium(problem, problem.bonds, self._iterate_split(problem, problem.bonds, None))

    def _factorise(self, problem: Problem) -> Solution:
        assert isinstance(problem.coulomb, DirectCoulomb)
        linear, constraint = _linear(problem), problem.constraint
        matrix = problem.coulomb.matrix()
        charges = solve_dense(matrix, linear, constraint)
        induced = matrix @ charges
        residual = float(np.linalg.norm(constraint.project(induced + linear)))
        scale = residual_scale(linear, np.diag(matrix), constraint)
        rounding = 1e-12 * float(np.linalg.norm(induced) + np.linalg.norm(linear))
        target = max(self.tolerance * scale, rounding)
        if not residual <= target:
            raise ChargeError(f"charges must reach a residual of {target:.3g} eV/e, got {residual:.3g}")
        return Solution(charges, induced, 0)

    def _iterate(self, problem: Problem, guess: Floats | None, follows: bool) -> Solution:
        coulomb, neighbours, constraint = problem.coulomb, problem.neighbours, problem.constraint
        linear = _linear(problem)
        inverse = self._preconditioner.at(coulomb, neighbours, follows, constraint.halo)
        softest = smallest(coulomb.hardness, constraint.halo)
        if self._has_to_check(softest, guess, problem) and constraint.n_free > 0:
            free = constraint.homogeneous

            def respond(x: Floats) -> Floats:
                start = np.zeros_like(x)
                return conjugate_gradient(coulomb.apply, inverse.apply, -x, free, start, 1.0, 1e-6).charges

            check_stability(respond, free.project(np.random.default_rng(0).normal(size=len(linear))), constraint.halo)
        start = np.zeros(len(linear)) if guess is None else guess
        scale = residual_scale(linear, self_interaction(coulomb.hardness, coulomb.gaussian_width), constraint)
        limits = (linear, constraint, start, scale, self._goal)
        if softest < SAFE or coulomb.roughness == 0.0:
            return conjugate_gradient(coulomb.apply, inverse.apply, *limits)
        return refined_conjugate_gradient(coulomb, inverse.apply, *limits)

    def _factorise_split(self, problem: Problem, bonds: Bonds) -> SplitSolution:
        assert isinstance(problem.coulomb, DirectCoulomb)
        softest = float(problem.coulomb.hardness.min())
        if softest < 0.0:
            self._check_split(problem.coulomb, bonds)
        return solve_split_dense(problem.coulomb.matrix(), bonds, problem.electronegativity, _unbound(problem, bonds))

    def _iterate_split(self, problem: Problem, bonds: Bonds, guess: Floats | None) -> SplitSolution:
        chi, unbound = problem.electronegativity, _unbound(problem, bonds)
        coulomb = problem.coulomb
        if self._has_to_check(smallest(coulomb.hardness, bonds.halo), guess, problem):
            self._check_split(coulomb, bonds)
        expected = chi + (coulomb.apply(unbound) if guess is None else guess)
        # a guess may be anything, so that it may tighten the tolerance but not loosen it
        own = self_interaction(coulomb.hardness, coulomb.gaussian_width) * unbound
        most = split_scale(bonds, chi, problem.field) + split_size(bonds, own)
        scale = min(split_scale(bonds, expected, problem.field), most)
        start = np.zeros_like(chi) if guess is None else expected
        return solve_split(coulomb, bonds, chi, unbound, start, scale, self._goal)

    def _has_to_check(self, softest: float, guess: Floats | None, problem: Problem) -> bool:
        """At every step for negative hardness, else with every new list (of any rank) where hardness is small."""
        if softest >= SAFE:
            return False
        is_new = problem.neighbours.builds != self._checked
        self._checked = problem.neighbours.builds
        return softest < 0.0 or guess is None or total(is_new, problem.constraint.halo) > 0

    def _check_split(self, coulomb: Coulomb, bonds: Bonds) -> None:
        if total(len(bonds.neighbour), bonds.halo) == 0:
            return

        def respond(x: Floats) -> Floats:
            size = float(np.sqrt(bonds.halo.sum(x @ bonds.laplacian(x))))
            return bonds.laplacian(split_conjugate_gradient(coulomb.apply, bonds, x, 1e-6 * size)[0])

        random = np.random.default_rng(0).normal(size=len(bonds.first) - 1)
        check_stability(respond, bonds.laplacian(random), bonds.halo)


def _is_small(problem: Problem) -> bool:
    return isinstance(problem.coulomb, DirectCoulomb) and len(problem.structure) <= SMALL


def _linear(problem: Problem) -> Floats:
    """chi - F.r, eV/e, shape (n,)."""
    if not problem.field.any():
        return problem.electronegativity
    return problem.electronegativity - problem.anchors @ problem.field


def _unbound(problem: Problem, bonds: Bonds) -> Floats:
    """q0 + P: what the field alone would make of the charges, e, shape (n,)."""
    assert problem.reference is not None
    if not problem.field.any():
        return problem.reference
    return problem.reference + bonds.gathered(bonds.compliance * (bonds.vectors @ problem.field))


def _free_equilibrium(problem: Problem, solution: Solution) -> Equilibrium:
    linear = _linear(problem)
    energies = solution.charges * (linear + 0.5 * solution.induced)
    potential = problem.electronegativity + solution.induced
    dipole = problem.constraint.halo.sum(solution.charges @ problem.anchors)
    return Equilibrium(solution.charges, potential, energies, solution.iterations, dipole, np.empty(0))


def _split_equilibrium(problem: Problem, bonds: Bonds, solution: SplitSolution) -> Equilibrium:
    assert problem.reference is not None
    tension = bonds.tension(solution.driving, problem.field)
    flows = bonds.compliance * tension
    of_bonds = flows * (0.25 * tension - 0.5 * (bonds.vectors @ problem.field))
    energies = solution.charges * (problem.electronegativity + 0.5 * solution.induced)
    energies += bonds.per_atom(of_bonds) - problem.reference * (problem.anchors @ problem.field)
    potential = problem.electronegativity + solution.induced
    dipole = bonds.halo.sum(problem.reference @ problem.anchors + 0.5 * flows @ bonds.vectors)
    return Equilibrium(solution.charges, potential, energies, solution.iterations, dipole, tension)


def electrostatic_gradient(problem: Problem, hold: Hold, equilibrium: Equilibrium) -> tuple[Floats, Floats]:
    """dE/dR (n, 3), eV/Angstrom, and dE/d(strain) (3, 3), eV, at fixed charges, flows and electronegativities."""
    grad_r, grad_strain = problem.coulomb.gradient(equilibrium.charges)
    field_r, field_strain = field_gradient(problem.structure, hold, equilibrium.charges, equilibrium.dipole)
    if (bonds := problem.bonds) is not None:
        gradient = bond_gradient(bonds, equilibrium.tension)
        grad_r += bonds.scatter(gradient)
        grad_strain += bonds.halo.sum(bonds.vectors.T @ gradient)
    return grad_r + field_r, grad_strain + field_strain


def bond_gradient(bonds: Bonds, tension: Floats) -> Floats:
    """dE/d(d_b) at fixed x_b, from c(r) alone: -1/4 dc/dr (p_b / c_b)^2 d_b / r in each direction; (n_bonds, 3)."""
    length = np.linalg.norm(bonds.vectors, axis=1)
    out: Floats = (-0.25 * bonds.slope * tension**2 / length)[:, None] * bonds.vectors
    return out
