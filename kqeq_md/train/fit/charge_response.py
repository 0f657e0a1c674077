"""The charges of one frame as a linear function of what is learned: J as a matrix, inverted once.

    q = known - G chi + S P y

with chi the electronegativities, y the learned reference charges (constants of the elements among them) and P the
projection on sums of zero. Where charges
flow freely, with A_g the indicator of group g, G = J^-1 - T A J^-1, T = J^-1 A^T (A J^-1 A^T)^-1 and
known = G F.r + T Q_g. Split charges (`charges.split`): S = (1 + X J)^-1, G = S X, known = S (q0 + P_flow).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kqeq_md.charges.charge_model import Hold
from kqeq_md.charges.equilibrate import Problem
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.errors import ChargeError
from kqeq_md.structure import Floats, Structure

ACCURACY = 1e-6
"""Target rms force error of the Coulomb sum in periodic training frames, eV/Angstrom: below any label's noise."""

TIGHT = 1e-10
"""Tolerance of charge equilibration in training: what is derived stays exact beside what is solved."""


def operator_for(structure: Structure, gaussian_width: Floats, hardness: Floats) -> DirectCoulomb | EwaldCoulomb:
    """J of a training frame, by the sums that give it as a matrix; widths and hardness of each atom."""
    if structure.boundary == "open":
        return DirectCoulomb(structure.positions, gaussian_width, hardness)
    return EwaldCoulomb(
        structure.positions, structure.cell, gaussian_width, hardness, ACCURACY, open_axis=structure.open_axis
    )


@dataclass(frozen=True)
class ChargeResponse:
    """Charges as a linear function of electronegativities chi and learned reference charges y.

    Attributes:
        matrix: J, eV/e^2, shape (n, n).
        inverse: G, e^2/eV, shape (n, n).
        known: what total charge, field and fixed reference charges make, e, shape (n,); the total charge
            is spread evenly here where they are learned.
        screening: S of split charges, shape (n, n); None for others.
        reference: S P, shape (n, n); None where no reference charges are learned.
    """

    matrix: Floats
    inverse: Floats
    known: Floats
    screening: Floats | None = None
    reference: Floats | None = None

    @property
    def by_inputs(self) -> Floats:
        """dq/d(chi, y), shape (n, n) or (n, 2 n)."""
        return -self.inverse if self.reference is None else np.concatenate([-self.inverse, self.reference], axis=1)


def charge_response(problem: Problem, hold: Hold) -> ChargeResponse:
    """The response of the charges of a frame, in the order of the problem.

    Raises:
        ChargeError: no positive definite Hamiltonian.
    """
    matrix = operator_for(problem.structure, problem.coulomb.gaussian_width, problem.coulomb.hardness).matrix()
    return _free_response(problem, matrix) if problem.bonds is None else _split_response(problem, matrix, hold)


def _free_response(problem: Problem, matrix: Floats) -> ChargeResponse:
    """The inverse of J on the space of charge transfer."""
    constraint = problem.constraint
    members = (constraint.group == np.arange(len(constraint.charges))[:, None]).astype(np.float64)
    # J + c A^T A gives the same charges and can be inverted also where J itself cannot
    shifted = np.linalg.inv(matrix + np.abs(matrix).max() * members.T @ members)
    to_unit = shifted @ members.T @ np.linalg.inv(members @ shifted @ members.T)
    inverse = shifted - to_unit @ members @ shifted
    _check_definite(inverse, np.abs(shifted).max())
    return ChargeResponse(matrix, inverse, to_unit @ constraint.charges + inverse @ (problem.anchors @ problem.field))


def _split_response(problem: Problem, matrix: Floats, hold: Hold) -> ChargeResponse:
    """(1 + X J) q = q0 + P_flow - X chi, q0 = y without its mean + that of the elements with the right sum."""
    bonds, constraint, n = problem.bonds, problem.constraint, len(matrix)
    assert bonds is not None
    assert problem.reference is not None
    x = np.zeros((n, n))
    np.add.at(x, (np.repeat(np.arange(n), np.diff(bonds.first)), bonds.neighbour), -bonds.compliance)
    x[np.diag_indices(n)] -= x.sum(axis=1)
    screening = np.asarray(np.linalg.inv(np.eye(n) + x @ matrix), dtype=np.float64)
    inverse: Floats = screening @ x
    _check_definite(inverse, np.abs(inverse).max())
    flows = bonds.gathered(bonds.compliance * (bonds.vectors @ problem.field))
    if hold.reference is not None:
        return ChargeResponse(matrix, inverse, screening @ (problem.reference + flows), screening)
    nothing_learned = constraint.enforce(np.zeros(n))
    learned = np.stack([constraint.project(row) for row in screening])
    return ChargeResponse(matrix, inverse, screening @ (nothing_learned + flows), screening, learned)


def _check_definite(inverse: Floats, scale: float) -> None:
    """Rounding is small beside `scale`; where no charge can flow, as between single atoms, `inverse` is rounding."""
    symmetric = 0.5 * (inverse + inverse.T)
    if np.linalg.eigvalsh(symmetric)[0] < -1e-9 * scale:
        raise ChargeError("`charges.hardness` and `charges.gaussian_width` give no positive definite Hamiltonian")
