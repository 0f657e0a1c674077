"""What a uniform static field and a dipole mean for each boundary: the only place that decides it.

    E = E_0 - F.mu,   mu = sum_i q_i R_i about the coordinate origin.

In open boundaries both are defined; for Q != 0 both move with the origin as they must (sum of forces = Q F).
Where charge flows freely across a periodic boundary they are not: mu changes by q_i T when atom i is written as its
image at R_i + T, so charges and energy would depend on how atoms are wrapped. A slab has a dipole along its normal,
and a field along it; nothing in its plane.
"""

from __future__ import annotations

import numpy as np

from kqeq_md.errors import FieldError
from kqeq_md.structure import Floats, Structure

ROUNDING = 1e-6
"""Part of a field in the plane of a slab that passes as rounding of its normal."""


def field_potential(structure: Structure) -> Floats | None:
    """-F.R_i, the potential energy per charge in the field, eV/e, shape (n,); None without a field.

    Raises:
        FieldError: a field along a periodic axis.
    """
    field = effective_field(structure)
    if field is None:
        return None
    potential: Floats = -(structure.positions @ field)
    return potential


def field_gradient(structure: Structure, charges: Floats) -> tuple[Floats, Floats]:
    """d(-F.mu)/dR (n, 3) in eV/Angstrom and d/d(strain) (3, 3) in eV at fixed charges, zero without a field.

    The field stays when an open structure is strained. That of a slab turns with its normal n, for only there it has
    a meaning, so that heights z_i count alone and wrapping doesn't: d/d(strain) = -(F.n) sum_i q_i z_i n n.

    Raises:
        FieldError: a field along a periodic axis.
    """
    field = effective_field(structure)
    if field is None:
        return np.zeros((len(structure), 3)), np.zeros((3, 3))
    moment = charges @ structure.positions
    if structure.boundary == "slab":
        moment = (moment @ structure.normal) * structure.normal
    return -np.outer(charges, field), -np.outer(field, moment)


def effective_field(structure: Structure) -> Floats | None:
    """F, V/Angstrom, shape (3,), along the normal of a slab to the last digit; None without a field.

    Raises:
        FieldError: a field along a periodic axis.
    """
    field = structure.field
    if not field.any():
        return None
    if structure.boundary == "open":
        return field
    if structure.boundary == "slab":
        along: Floats = (field @ structure.normal) * structure.normal
        if np.linalg.norm(field - along) <= ROUNDING * np.linalg.norm(field):
            return along
    raise FieldError(
        f"`field` must be zero along periodic axes, got {field.tolist()} V/Angstrom: with charges free "
        "to flow through the boundary the dipole, and so the energy, depends on how atoms are wrapped. Ways out: "
        "an open boundary along the field (pbc = False, or a slab with the field along its normal; LAMMPS "
        "`boundary f f f`), or a charge model with a defined dipole (charge conserved per fragment, split charges), "
        "which this version does not have"
    )


def dipole(structure: Structure, charges: Floats) -> Floats | None:
    """mu = sum_i q_i R_i, e Angstrom, shape (3,); None where an axis is periodic, along which it is not defined."""
    if structure.boundary != "open":
        return None
    out: Floats = charges @ structure.positions
    return out
