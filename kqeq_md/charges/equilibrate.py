"""Charge equilibration: electronegativities in, charges and electrostatic energy out.

    E(q) = sum_i (chi_i - F.R_i) q_i + 1/2 sum_ij q_i J_ij q_j,   sum_i q_i = Q

E is stationary in q under the constraint, so its derivatives need no derivative of q:
dE/dchi_i = q_i and dE/dR is taken at fixed charges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kqeq_md.charges.field import field_potential
from kqeq_md.charges.solver import solve_total_charge
from kqeq_md.electrostatics.coulomb import Coulomb
from kqeq_md.structure import Floats, Structure


@dataclass(frozen=True)
class Equilibrium:
    """Charges (e, shape (n,)) and the energy of each atom (eV, shape (n,)), q_i times half of its potentials."""

    charges: Floats
    energies: Floats


def equilibrate(structure: Structure, coulomb: Coulomb, electronegativity: Floats, tolerance: float) -> Equilibrium:
    """Minimise E(q) under the total charge.

    Args:
        structure: total charge, field and positions.
        coulomb: the operator J.
        electronegativity: chi_i, eV/e, shape (n,).
        tolerance: relative residual of the solution.

    Raises:
        FieldError: a field along a periodic axis.
        ChargeError: no minimum, or tolerance not reached.
    """
    applied = field_potential(structure)
    linear = electronegativity if applied is None else electronegativity + applied
    matrix = coulomb.matrix()
    charges = solve_total_charge(matrix, linear, structure.charge, tolerance)
    return Equilibrium(charges, charges * (linear + 0.5 * (matrix @ charges)))


def electrostatic_gradient(structure: Structure, coulomb: Coulomb, charges: Floats) -> tuple[Floats, Floats]:
    """dE/dR (n, 3), eV/Angstrom, and dE/d(strain) (3, 3), eV, at fixed charges and electronegativities."""
    grad_r, grad_strain = coulomb.gradient(charges)
    if field_potential(structure) is not None:
        grad_r = grad_r - np.outer(charges, structure.field)
        grad_strain = grad_strain - np.outer(structure.field, charges @ structure.positions)
    return grad_r, grad_strain
