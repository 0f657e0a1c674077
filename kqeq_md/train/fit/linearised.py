"""One frame around the present model: charges, energy, forces, and how they follow what is learned.

Inputs are chi_k and y_k (electronegativity and learned reference charge of each atom), both with the gradients that
the kernels give them, and the logarithms x_k of the physical parameters. E is stationary in the charges, so that

    dE/dchi_i = q_i,   dE/dy_i = psi_i = (P (phi - F.r))_i,   dE/dx_k at fixed charges and tensions,

while charges and forces respond: with phi = chi + J q and G, S of `charge_response`

    dq = -G (dchi + dJ q) + S P dy + S dflow,   dphi = dchi + dJ q + J dq,   dt_ij = dphi_i - dphi_j,
    dF = -[sum_k dq_k dchi_k/dR + sum_k dpsi_k dy_k/dR + bonds(dt) - dq E(q) - q E(dq) - dq F + d(dE/dR)/dx],

E(q) the field of the charges. What the weights do to the gradients of chi, y and the short range at fixed q and psi is
linear and stands in `design.force_design`; together they are the whole derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kqeq_md.neighbours.search import Ints
from kqeq_md.potential import Equilibrated, Potential, restored
from kqeq_md.structure import Floats
from kqeq_md.train.fit.charge_response import ChargeResponse, charge_response
from kqeq_md.train.fit.physical import Derivatives, Parameter, derivatives


@dataclass(frozen=True)
class Linearised:
    """A frame of n atoms with I = n or 2 n inputs (chi, and y if it is learned) and K physical parameters.

    Attributes:
        energy: eV. forces: eV/Angstrom, shape (n, 3). charges: e, shape (n,).
        virial: eV, shape (3, 3); None where it is not defined.
        reference_gradient: psi, eV/e, shape (n,); None where y is not learned.
        reference: y, e, shape (n,), likewise.
        charges_by_input: shape (n, I + K).
        forces_by_input: shape (3 n, I + K), without the change of gradients.
        energy_by_parameter: eV, shape (K,).
        polarizability: e^2 Angstrom^2/eV, shape (3, 3); by_parameter: shape (3, 3, K); None unless asked for.
    """

    energy: float
    forces: Floats
    charges: Floats
    virial: Floats | None
    reference_gradient: Floats | None
    reference: Floats | None
    charges_by_input: Floats
    forces_by_input: Floats
    energy_by_parameter: Floats
    polarizability: Polarizability | None


@dataclass(frozen=True)
class Polarizability:
    """dmu_a/dF_b in open boundaries, e^2 Angstrom^2/eV, shape (3, 3), and its derivatives by the physical parameters,
    shape (3, 3, K)."""

    value: Floats
    by_parameter: Floats


def linearise(
    potential: Potential, state: Equilibrated, parameters: Sequence[Parameter], polarizable: bool = False
) -> Linearised:
    """A frame around its equilibrated charges.

    Args:
        potential: of the present model.
        state: of the frame.
        parameters: physical parameters that are fitted.
        polarizable: whether the polarizability is wanted; open boundaries alone.
    """
    result, order, problem = potential.result(state), state.order, state.problem
    assert result.forces is not None
    species = potential.species_index(problem.structure.numbers)
    response = charge_response(problem, state.hold)
    by_x = derivatives(problem, species, parameters, state.equilibrium.charges, state.equilibrium.tension)
    charges_by_input = np.concatenate([response.by_inputs, charges_by_parameter(response, by_x)], axis=1)
    forces_by_input = _forces_by_input(state, response, by_x, charges_by_input)
    n, inputs = len(order), response.by_inputs.shape[1]
    columns = np.concatenate([n * (k // n) + order[k % n] for k in [np.arange(inputs)]])
    columns = np.append(columns, np.arange(inputs, charges_by_input.shape[1]))
    psi = state.reference_gradient
    return Linearised(
        result.energy, result.forces, result.charges, result.virial,
        None if psi is None else restored(psi, order),
        learned_reference(state),
        _columns_restored(restored(charges_by_input, order), columns),
        _columns_restored(restored(forces_by_input, order), columns).reshape(3 * n, -1),
        by_x.energy,
        polarizability(state, response, species, parameters) if polarizable else None,
    )  # fmt: skip


def learned_reference(state: Equilibrated) -> Floats | None:
    """y of each atom of a frame, e, shape (n,); None where it is not learned."""
    if state.reference_gradient is None:
        return None
    return restored(state.local.reference_charge, state.order)


def _columns_restored(values: Floats, columns: Ints) -> Floats:
    out = np.empty_like(values)
    out[..., columns] = values
    return out


def charges_by_parameter(response: ChargeResponse, by_x: Derivatives) -> Floats:
    """-G dJ q + S dflow, shape (n, K)."""
    out: Floats = -response.inverse @ by_x.potential
    return out if response.screening is None else out + response.screening @ by_x.flow


def _forces_by_input(
    state: Equilibrated, response: ChargeResponse, by_x: Derivatives, charges_by_input: Floats
) -> Floats:
    """dF of the docstring, shape (n, 3, I + K)."""
    n, inputs = len(response.matrix), response.by_inputs.shape[1]
    potential_by_input = response.matrix @ charges_by_input
    potential_by_input[:, :n] += np.eye(n)
    potential_by_input[:, inputs:] += by_x.potential
    out = -np.tensordot(_gradient_by_charges(state), charges_by_input, axes=1)
    if state.reference_gradient is not None:
        project = state.problem.constraint.project
        psi_by_input = np.stack([project(column) for column in potential_by_input.T], axis=1)
        out -= np.tensordot(_gradient_of_each(state, column=2), psi_by_input, axes=1)
    if state.problem.bonds is not None:
        out -= np.tensordot(_gradient_by_potential(state), potential_by_input, axes=1)
    out[:, :, inputs:] -= by_x.gradient
    return out


def _gradient_by_charges(state: Equilibrated) -> Floats:
    """d(dE/dR_i)/dq_k at fixed tensions: dchi_k/dR_i - q_i dE_i/dq_k - delta_ik (E(q)_i + F); shape (n, 3, n)."""
    problem, charges = state.problem, state.equilibrium.charges
    out = _gradient_of_each(state, column=0)
    own = problem.coulomb.field(charges) + problem.field
    for k, unit in enumerate(np.eye(len(charges))):
        out[:, :, k] -= charges[:, None] * problem.coulomb.field(unit)
        out[k, :, k] -= own[k]
    return out


def _gradient_of_each(state: Equilibrated, column: int) -> Floats:
    """d(chi_k)/dR_i (column 0) or dy_k/dR_i (column 2), shape (n, 3, n); each pair belongs to one centre."""
    local = state.local
    n = len(local.species)
    one, none = np.ones(n), np.zeros(n)
    gradient = local.gradient(one, none, 0.0) if column == 0 else local.gradient(none, one, 0.0)
    pairs = local.pairs
    centre = pairs.centre
    out = np.zeros((n, n, 3))
    np.add.at(out, (pairs.neighbour, centre), gradient)
    np.subtract.at(out, (centre, centre), gradient)
    return out.transpose(0, 2, 1)


def _gradient_by_potential(state: Equilibrated) -> Floats:
    """d(dE/dR_i)/dphi_k through the tensions of the bonds, shape (n, 3, n)."""
    bonds, tension = state.problem.bonds, state.equilibrium.tension
    assert bonds is not None
    n = len(bonds.first) - 1
    first, second = np.repeat(np.arange(n), np.diff(bonds.first)), bonds.neighbour
    length = np.linalg.norm(bonds.vectors, axis=1)
    gradient = (-0.5 * bonds.slope * tension / length)[:, None] * bonds.vectors
    out = np.zeros((n, n, 3))
    for moved, sign in ((second, 1.0), (first, -1.0)):
        np.add.at(out, (moved, first), sign * gradient)
        np.add.at(out, (moved, second), -sign * gradient)
    return out.transpose(0, 2, 1)


def polarizability(
    state: Equilibrated,
    response: ChargeResponse,
    species: Ints,
    parameters: Sequence[Parameter],
) -> Polarizability:
    """sum_i r_ia dq_i/dF_b of a frame in open boundaries and its derivatives, in any order of atoms."""
    problem = state.problem
    value, by_parameter = np.empty((3, 3)), np.empty((3, 3, len(parameters)))
    for b, unit in enumerate(np.eye(3)):
        charges, tension = _answer(state, response, unit)
        by_x = derivatives(problem, species, parameters, charges, tension)
        value[:, b] = problem.anchors.T @ charges
        by_parameter[:, b] = problem.anchors.T @ charges_by_parameter(response, by_x)
    return Polarizability(value, by_parameter)


def _answer(state: Equilibrated, response: ChargeResponse, unit: Floats) -> tuple[Floats, Floats]:
    """dq/dF along a unit field and the tensions that go with it."""
    problem = state.problem
    if problem.bonds is None:
        return response.inverse @ (problem.anchors @ unit), np.empty(0)
    assert response.screening is not None
    bonds = problem.bonds
    charges = response.screening @ bonds.gathered(bonds.compliance * (bonds.vectors @ unit))
    return charges, bonds.tension(response.matrix @ charges, unit)
