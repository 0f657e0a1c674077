"""What a uniform static field and a dipole mean for each boundary: the only place that decides it.

    E = E_0 - F.mu,   mu = sum_i m_i r_i + sum_b p_b d_b

With charges that flow freely, or inside fragments, m_i = q_i and there are no bonds; with split charges m_i = q0_i and
each bond carries its flow p_b along its vector d_b. mu is about the coordinate origin.

Open boundaries: r_i = R_i, any field has a meaning, and for Q != 0 mu moves with the origin as it must (sum of forces =
Q F). Across a periodic boundary sum_i m_i r_i changes by m_i T when atom i is written as its image at R_i + T. Whether
that matters depends on what holds the charges:

    free (qeq, or learned q0 of the whole structure)   m_i depends on all positions: energy and forces would depend on
                                                       how atoms are wrapped. No field along periodic axes, no dipole.
                                                       A slab has a field along its normal.
    fragments (of qeq, or of learned q0)               r_i is the atom's place in its whole fragment. E changes by
                                                       exactly -Q_g F.T when fragment g moves by T, forces and charges
                                                       by nothing; for neutral fragments E doesn't either.
    fixed q0 of each atom                              the same with each atom for itself, -q0_i F.T

A fragment that closes over the boundary (a polymer, a crystal) is not whole anywhere: along it, charges are free. So
they are in a fragment of several pieces that no bond joins, along every periodic axis. Where q0 is fixed, each atom
stands for itself in such fragments. Stress is the derivative of E with respect to strain, so it needs an E that doesn't
depend on the images, and mu along all axes: there is none while charged fragments (or atoms with q0 != 0), or fragments
without end, are in a field along a periodic axis.
"""

from __future__ import annotations

import numpy as np

from kqeq_md.charges.charge_model import Hold
from kqeq_md.charges.constraints import SUM
from kqeq_md.errors import FieldError
from kqeq_md.structure import Floats, Structure

ROUNDING = 1e-6
"""Part of a field along a direction that passes as rounding."""


def effective_field(structure: Structure, hold: Hold) -> Floats:
    """F, V/Angstrom, shape (3,); along the normal of a slab to the last digit where it has a meaning only there.

    Raises:
        FieldError: a field along a periodic axis along which charge is free.
    """
    field = structure.field
    if not field.any() or structure.boundary == "open":
        return field
    if _free(hold):
        if structure.boundary == "slab":
            along: Floats = (field @ structure.normal) * structure.normal
            if np.linalg.norm(field - along) <= ROUNDING * np.linalg.norm(field):
                return along
        raise FieldError(
            f"`field` must be zero along periodic axes, got {field.tolist()} V/Angstrom: with charges free to flow "
            "through the boundary the dipole, and so the energy, depends on how atoms are wrapped. Ways out: an open "
            "boundary along the field (pbc = False, or a slab with the field along its normal; LAMMPS `boundary f f "
            'f`), charge conserved per fragment (charges="fragments"), or split charges (charges="split"; with learned '
            "reference charges they need `fragments` too)"
        )
    if _loose(hold) and _along_periodic_axes(structure):
        raise FieldError(
            f"`field` must be zero along periodic axes, got {field.tolist()} V/Angstrom and a fragment of several "
            "pieces that no bond joins: charge would flow between molecules, whose places relative to each other "
            "depend on how they are wrapped. Way out: a fragment for each molecule"
        )
    for cells in _windings(hold):
        if abs(field @ (cells @ structure.cell)) > ROUNDING * np.linalg.norm(field):
            raise FieldError(
                f"`field` must be zero along fragments without end, got {field.tolist()} V/Angstrom and a fragment "
                f"that closes over the boundary along {(cells @ structure.cell).round(3).tolist()} Angstrom: charge "
                "would flow through it for ever. Ways out: smaller fragments, or split charges with fixed reference "
                "charges"
            )
    return field


def anchors(structure: Structure, hold: Hold) -> Floats:
    """r_i, where the charges m_i sit, Angstrom, shape (n, 3)."""
    if hold.fragments is None or _by_atoms(hold):
        return structure.positions
    return hold.fragments.whole(structure)


def has_dipole(structure: Structure, hold: Hold) -> bool:
    """Whether mu is defined along all three axes."""
    return structure.boundary == "open" or not (_free(hold) or _loose(hold) or len(_windings(hold)) > 0)


def has_stress(structure: Structure, hold: Hold) -> bool:
    """Whether E in the field is a function of the strain: not where charged units, or fragments without end, stand in
    a field along a periodic axis."""
    if not _along_periodic_axes(structure) or _free(hold):
        return True
    if len(_windings(hold)) > 0:
        return False
    units = hold.reference if _by_atoms(hold) else hold.constraint.charges
    assert units is not None
    return bool(np.abs(units).max() <= SUM)


def field_gradient(structure: Structure, hold: Hold, charges: Floats, dipole: Floats) -> tuple[Floats, Floats]:
    """d(-F.mu)/dR (n, 3) in eV/Angstrom and d/d(strain) (3, 3) in eV at fixed m and p, zero without a field.

    dmu/dR_i = q_i, for the flows p_b into an atom add up to q_i - m_i. The field stays when a structure is strained,
    but for the part of it along the normal n of a slab, which turns with it, so that heights alone count and neither
    wrapping nor the charge of the units matters: d/d(strain) = -F_plane mu - (F.n) (mu.n) n n.

    Args:
        structure: the atoms.
        hold: what holds their charges.
        charges: q_i, e, shape (n,).
        dipole: mu, e Angstrom, shape (3,); its components mean something where a field would.

    Raises:
        FieldError: as `effective_field`.
    """
    field = effective_field(structure, hold)
    if not field.any():
        return np.zeros((len(structure), 3)), np.zeros((3, 3))
    grad_r = -np.outer(charges, field)
    if structure.boundary != "slab":
        return grad_r, -np.outer(field, dipole)
    normal = structure.normal
    height = field @ normal
    in_plane = field - height * normal
    return grad_r, -np.outer(in_plane, dipole) - height * (dipole @ normal) * np.outer(normal, normal)


def _along_periodic_axes(structure: Structure) -> bool:
    """Whether the field has a part along a periodic axis, beyond rounding."""
    along = structure.cell[np.array(structure.pbc)] @ structure.field
    return bool((np.abs(along) > ROUNDING * np.linalg.norm(structure.field)).any())


def _free(hold: Hold) -> bool:
    return hold.fragments is None and hold.reference is None


def _by_atoms(hold: Hold) -> bool:
    """Whether each atom with its fixed q0 stands for itself: without fragments, or with such as have no place."""
    fragments = hold.fragments
    return hold.reference is not None and (fragments is None or fragments.loose or len(fragments.windings) > 0)


def _loose(hold: Hold) -> bool:
    """Whether charge flows between pieces of a fragment that no bond joins."""
    return hold.reference is None and hold.fragments is not None and hold.fragments.loose


def _windings(hold: Hold) -> Floats:
    """Lattice vectors along which fragments have no end and charges are not fixed to atoms, in cells, shape (m, 3)."""
    if hold.fragments is None or hold.reference is not None:
        return np.empty((0, 3))
    return hold.fragments.windings.astype(np.float64)
