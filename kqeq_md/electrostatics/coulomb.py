"""The Coulomb operator J that the boundary of a structure asks for."""

from __future__ import annotations

from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.structure import Floats, Structure

Coulomb = DirectCoulomb | EwaldCoulomb


def coulomb(structure: Structure, gaussian_width: Floats, hardness: Floats, accuracy: float) -> Coulomb:
    """Direct sum for open boundaries, Ewald summation for periodic ones; the same Hamiltonian in both.

    Args:
        structure: positions and cell.
        gaussian_width: s_i, Angstrom, shape (n,).
        hardness: eta_i, eV/e^2, shape (n,).
        accuracy: target rms force error, eV/Angstrom (the direct sum is exact).
    """
    if structure.periodic:
        return EwaldCoulomb(structure.positions, structure.cell, gaussian_width, hardness, accuracy)
    return DirectCoulomb(structure.positions, gaussian_width, hardness)
