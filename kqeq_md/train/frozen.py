"""One frame as the fit needs it: charges as a linear function of what is learned, and the energy at given charges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kqeq_md.charges.charge_model import Hold
from kqeq_md.charges.equilibrate import electrostatic_gradient
from kqeq_md.charges.field import anchors, effective_field
from kqeq_md.charges.split import find_bonds
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.errors import ChargeError
from kqeq_md.halo import SERIAL
from kqeq_md.model import Model
from kqeq_md.neighbours import find_pairs
from kqeq_md.potential import Equilibrated, Potential, restored
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
    """Charges as a linear function of electronegativities chi and learned reference charges y.

        q = known - G chi + H y

    Attributes:
        inverse: G, e^2/eV, shape (n, n).
        known: what total charge, field and fixed reference charges make, e, shape (n,).
        reference: H, shape (n, n); None where no reference charges are learned.
    """

    inverse: Floats
    known: Floats
    reference: Floats | None = None

    def design(self, kernel: Floats) -> Floats:
        """Derivatives of q by the weights of chi and, beside them, of y.

        Args:
            kernel: of one column of weights, shape (n, columns).
        """
        parts = [-self.inverse @ kernel]
        if self.reference is not None:
            parts.append(self.reference @ kernel)
        return np.concatenate(parts, axis=1)


def charge_response(potential: Potential, structure: Structure) -> Response:
    """The response of the charges of a frame.

    Raises:
        ChargeError: no positive definite Hamiltonian, or fragments whose charges nobody can guess.
        FieldError: a field that has no meaning for the boundary.
    """
    species = potential.species_index(structure.numbers)
    hold = potential.charge_model.at(structure, species)
    matrix = operator_for(structure, potential.model, species).matrix()
    if potential.charge_model.name == "split":
        return _split_response(matrix, potential.model, structure, species, hold)
    return _free_response(matrix, structure, hold)


def _free_response(matrix: Floats, structure: Structure, hold: Hold) -> Response:
    """The inverse of J on the space of charge transfer.

    With A_g the indicator of group g: G = J^-1 - T A J^-1, T = J^-1 A^T (A J^-1 A^T)^-1, known = G F.r + T Q_g.
    """
    group = hold.constraint.group
    members = (group == np.arange(len(hold.constraint.charges))[:, None]).astype(np.float64)
    # J + c A^T A gives the same charges and can be inverted also where J itself cannot
    shifted = np.linalg.inv(matrix + np.abs(matrix).max() * members.T @ members)
    to_unit = shifted @ members.T @ np.linalg.inv(members @ shifted @ members.T)
    inverse = shifted - to_unit @ members @ shifted
    if np.linalg.eigvalsh(inverse)[0] < -1e-9 * np.abs(inverse).max():
        raise _indefinite()
    applied = anchors(structure, hold) @ effective_field(structure, hold)
    return Response(inverse, to_unit @ hold.constraint.charges + inverse @ applied)


def _split_response(
    matrix: Floats, model: Model, structure: Structure, species: NDArray[np.int64], hold: Hold
) -> Response:
    """(1 + X J) q = q0 + P - X chi, q0 = y without its mean + that of the elements with the right sum."""
    bonds = find_bonds(
        find_pairs(structure, float(model.compliance_cutoff.max())), species, model.compliance,
        model.compliance_cutoff, SERIAL,
    )  # fmt: skip
    x = np.stack([bonds.laplacian(unit) for unit in np.eye(len(structure))])
    screening = np.linalg.inv(np.eye(len(structure)) + x @ matrix)
    inverse = screening @ x
    if np.linalg.eigvalsh(inverse)[0] < -1e-9 * np.abs(inverse).max():
        raise _indefinite()
    flows = bonds.compliance * (bonds.vectors @ effective_field(structure, hold))
    fixed = hold.reference
    reference = hold.constraint.enforce(model.reference_charge[species]) if fixed is None else fixed
    known = screening @ (reference + bonds.gathered(flows))
    learned = None if fixed is not None else np.stack([hold.constraint.project(row) for row in screening])
    return Response(inverse, known, learned)


def _indefinite() -> ChargeError:
    return ChargeError("`charges.hardness` and `charges.gaussian_width` give no positive definite Hamiltonian")


@dataclass(frozen=True)
class Frozen:
    """A frame at frozen charges and flows, where E = energy + q.chi + psi.y and E is stationary: the derivatives by chi
    and y are those of E.

    Attributes:
        charges: q, e, shape (n,).
        reference_gradient: psi = dE/dy, eV/e, shape (n,); None where no reference charges are learned.
        energy: eV.
        forces: that go with it, eV/Angstrom, shape (n, 3).
    """

    charges: Floats
    reference_gradient: Floats | None
    energy: float
    forces: Floats


def freeze(state: Equilibrated) -> Frozen:
    """The charges of a structure, and its energy and forces without any kernel.

    Args:
        state: of a model whose short range holds nothing but the repulsion.
    """
    problem, equilibrium, local, order = state.problem, state.equilibrium, state.local, state.order
    energy = float((equilibrium.energies + local.energies - equilibrium.charges * local.electronegativity).sum())
    psi = state.reference_gradient
    if psi is not None:
        energy -= float(psi @ local.reference_charge)
    grad_r, _ = electrostatic_gradient(problem, state.hold, equilibrium)
    grad_r = grad_r + local.pairs.scatter(local.pair_gradient, len(grad_r))
    return Frozen(
        restored(equilibrium.charges, order),
        None if psi is None else restored(psi, order),
        energy,
        -restored(grad_r, order),
    )
