"""What a uniform static field and a dipole mean for each boundary: the only place that decides it.

    E = E_0 - F.mu,   mu = sum_i q_i R_i about the coordinate origin.

In open boundaries both are defined; for Q != 0 both move with the origin as they must (sum of forces = Q F).
Where charge flows freely across a periodic boundary they are not: mu changes by q_i T when atom i is written as its
image at R_i + T, so charges and energy would depend on how atoms are wrapped.
"""

from __future__ import annotations

from kqeq_md.errors import FieldError
from kqeq_md.structure import Floats, Structure


def field_potential(structure: Structure) -> Floats | None:
    """-F.R_i, the potential energy per charge in the field, eV/e, shape (n,); None without a field.

    Raises:
        FieldError: a field along a periodic axis.
    """
    if not structure.field.any():
        return None
    if structure.periodic:
        raise FieldError(
            f"`field` must be zero along periodic axes, got {structure.field.tolist()} V/Angstrom: with charges free "
            "to flow through the boundary the dipole, and so the energy, depends on how atoms are wrapped. Ways out: "
            "an open boundary along the field (pbc = False; LAMMPS `boundary f f f`), or a charge model with a "
            "defined dipole (charge conserved per fragment, split charges), which this version does not have"
        )
    potential: Floats = -(structure.positions @ structure.field)
    return potential


def dipole(structure: Structure, charges: Floats) -> Floats | None:
    """mu = sum_i q_i R_i, e Angstrom, shape (3,); None for periodic structures, where it is not defined."""
    if structure.periodic:
        return None
    out: Floats = charges @ structure.positions
    return out
