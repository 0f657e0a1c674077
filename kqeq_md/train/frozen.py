"""Charges of one frame as the fit needs them: their linear response to chi, and their energy when frozen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kqeq_md.charges.equilibrate import electrostatic_gradient
from kqeq_md.charges.field import field_potential
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.errors import ChargeError
from kqeq_md.model import Model
from kqeq_md.neighbours import find_pairs
from kqeq_md.short_range import repulsion
from kqeq_md.structure import Floats, Structure

ACCURACY = 1e-6
"""Target rms force error of the Coulomb sum in periodic training frames, eV/Angstrom: below any label's noise."""


def operator_for(structure: Structure, model: Model, species: NDArray[np.int64]) -> DirectCoulomb | EwaldCoulomb:
    """J of a training frame, by the sums that give it as a matrix."""
    width, hardness = model.gaussian_width[species], model.hardness[species]
    if structure.boundary == "open":
        return DirectCoulomb(structure.positions, width, hardness)
    return EwaldCoulomb(structure.positions, structure.cell, width, hardness, ACCURACY, open_axis=structure.open_axis)


@dataclass(frozen=True)
class Response:
    """Charges as a linear function of electronegativity: q = known - G chi.

    G is the inverse of J on the subspace of charge transfer (eV/e^2)^-1, shape (n, n);
    known = G F.R + Q J^-1 1 / (1.J^-1 1), e, shape (n,).
    """

    inverse: Floats
    known: Floats

    def charges(self, electronegativity: Floats) -> Floats:
        """q, e, shape (n,)."""
        out: Floats = self.known - self.inverse @ electronegativity
        return out


def charge_response(structure: Structure, model: Model, species: NDArray[np.int64]) -> Response:
    """The response of the charges of a frame.

    Raises:
        ChargeError: J is not positive definite for charge transfer.
    """
    matrix = operator_for(structure, model, species).matrix()
    # J + c 1 1^T gives the same charges and can be inverted also where J itself cannot
    shifted = np.linalg.inv(matrix + np.abs(matrix).max())
    to_unit = shifted.sum(axis=1) / shifted.sum()
    inverse = shifted - np.outer(to_unit, shifted.sum(axis=0))
    if np.linalg.eigvalsh(inverse)[0] < -1e-9 * np.abs(inverse).max():
        raise ChargeError("`charges.hardness` and `charges.gaussian_width` give no positive definite Hamiltonian")
    applied = field_potential(structure)
    known = structure.charge * to_unit
    return Response(inverse, known if applied is None else known - inverse @ applied)


def frozen_energy_forces(
    structure: Structure, model: Model, species: NDArray[np.int64], charges: Floats
) -> tuple[float, Floats]:
    """Energy (eV) and forces (eV/Angstrom) of given charges without any kernel: 1/2 q.J.q - F.mu + repulsion."""
    pairs = find_pairs(structure, model.cutoff)
    numbers = structure.numbers.astype(np.float64)
    repelled, grad_pairs = repulsion(pairs, numbers, model.repulsion_radius[species])
    operator = operator_for(structure, model, species)
    energy = 0.5 * charges @ operator.matrix() @ charges + repelled.sum()
    applied = field_potential(structure)
    if applied is not None:
        energy += applied @ charges
    grad_r, _ = electrostatic_gradient(structure, operator, charges)
    return float(energy), -(grad_r + pairs.scatter(grad_pairs, len(structure)))
