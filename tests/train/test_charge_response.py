"""Charges as a linear function of what is learned, against the solver's own charges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.charges.cholesky import solve_dense
from kqeq_md.charges.constraints import total_charge
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.kernel import sparse_kernel
from kqeq_md.model import Model
from kqeq_md.potential import Equilibrated, Potential
from kqeq_md.structure import Structure
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.charge_response import ChargeResponse, charge_response, operator_for
from kqeq_md.train.fit.design import make_batch


def responded(potential: Potential, structure: Structure) -> tuple[Equilibrated, ChargeResponse]:
    """A structure with its charges, and how they respond, in the order of the problem."""
    state = potential.equilibrate(structure)
    return state, charge_response(state.problem, state.hold)


def eight_atoms(sets: Any, model: Model, boundary: str) -> Structure:
    """A cation in a field, or a cell without one."""
    structure = sets.random_clusters(3, 2, model, True)[1].structure
    if boundary == "open":
        return Structure(structure.numbers, structure.positions, charge=1.0, field=(0.1, -0.05, 0.07))
    return Structure(structure.numbers, structure.positions, cell=5.7 * np.eye(3), pbc=True)


def test_response_equals_the_solver(sets: Any, model: Model) -> None:
    """q = known - G chi against the constrained minimum that the potential finds, with charge and field."""
    frame = sets.random_clusters(3, 2, model, True)[1]
    structure, potential = frame.structure, Potential(model)
    state, response = responded(potential, structure)
    structure, species = state.problem.structure, potential.species_index(state.problem.structure.numbers)
    chi = np.random.default_rng(0).normal(size=8)
    operator = operator_for(structure, model.gaussian_width[species], model.hardness[species])
    np.testing.assert_allclose(response.matrix, operator.matrix(), atol=1e-13)  # rounding
    linear = chi - structure.positions @ structure.field
    expected = solve_dense(operator.matrix(), linear, total_charge(8, structure.charge))
    got = response.known + response.by_inputs @ chi
    np.testing.assert_allclose(got, expected, atol=1e-10)  # two ways to invert one matrix


@pytest.mark.parametrize("boundary", ["open", "periodic"])
@pytest.mark.parametrize("name", ["qeq", "split"])
def test_response_is_the_derivative_of_the_charges(sets: Any, name: str, boundary: str, model: Model) -> None:
    """Charges are linear in all weights: differences of the potential's own charges against columns of the design."""
    made = sets.with_learned_reference(model) if name == "split" else model
    structure = eight_atoms(sets, model, boundary)
    potential = Potential(made, accuracy=1e-9, tolerance=1e-12)
    batch = make_batch(
        [Frame(structure, None, None, None, None)], Descriptor(made.terms[0].soap, 2), made.cutoff, made.numbers
    )
    columns = (0, 2) if name == "split" else (0,)
    kernel = np.zeros((8, 16))
    for element, points in enumerate(made.terms[0].sparse_points):
        rows = batch.species == element
        kernel[rows, 8 * element : 8 * element + 8] = sparse_kernel(batch.spectra(element), points, made.terms[0].zeta)
    state, response = responded(potential, structure)
    inputs = np.split(response.by_inputs, len(columns), axis=1)
    design = np.empty((8, 16 * len(columns)))
    design[state.order] = np.concatenate([by_input @ kernel[state.order] for by_input in inputs], axis=1)
    base = potential.compute(structure).charges
    for block, column in enumerate(columns):
        for element, m in ((0, 1), (1, 4)):
            weights = [w.copy() for w in made.terms[0].weights]
            weights[element][m, column] += 1.0
            moved = Potential(made.with_weights(tuple(weights)), accuracy=1e-9, tolerance=1e-12).compute(structure)
            expected = moved.charges - base
            assert np.abs(expected).max() > 1e-4
            # ACCURACY of the direct Ewald sum in the cell; rounding in the open cluster
            atol = 1e-6 if boundary == "periodic" else 1e-11
            np.testing.assert_allclose(design[:, 16 * block + 8 * element + m], expected, atol=atol)


@pytest.mark.parametrize("boundary", ["open", "periodic"])
@pytest.mark.parametrize("name", ["qeq", "fixed", "learned"])
def test_response_gives_the_charges(name: str, boundary: str, sets: Any, model: Model) -> None:
    """q = known - G chi + S P y with the inputs that the potential itself has; nothing is left for a constant."""
    made = model if name == "qeq" else sets.with_learned_reference(model)
    if name == "fixed":
        made = made.with_weights([w[:, :2] for w in made.terms[0].weights])
    state, response = responded(Potential(made, 1e-9, 1e-13), eight_atoms(sets, model, boundary))
    assert (response.reference is not None) is (name == "learned")
    inputs = [state.local.electronegativity, *([state.local.reference_charge] if name == "learned" else [])]
    charges = response.known + response.by_inputs @ np.concatenate(inputs)
    # two ways to invert one matrix; in the cell ACCURACY of the direct sum
    np.testing.assert_allclose(charges, state.equilibrium.charges, atol=1e-11 if boundary == "open" else 1e-6)


def test_known_charges_are_those_of_total_charge_field_and_fixed_reference_charges(sets: Any, model: Model) -> None:
    """Without electronegativities; what is learned is no part of them, its constants neither."""
    made = sets.with_learned_reference(model)
    bare = made.with_weights([0 * w for w in made.terms[0].weights])
    bare = replace(bare, electronegativity_offset=np.zeros(2))
    fixed = bare.with_weights([w[:, :2] for w in bare.terms[0].weights])
    without = replace(bare, reference_charge=np.zeros(2))
    structure = eight_atoms(sets, model, "open")
    for case, alike in ((fixed, fixed), (without, without), (bare, without)):
        _, response = responded(Potential(case), structure)
        state, _ = responded(Potential(alike), structure)
        np.testing.assert_allclose(response.known, state.equilibrium.charges, atol=1e-12)


def test_fragments_hold_their_sums_in_the_response(model: Model) -> None:
    """Two neutral pairs far apart: what the response of one does, the other does not see but through its potential."""
    positions = [[0.0, 0, 0], [2.3, 0, 0], [0, 6.0, 0], [2.2, 6.0, 0]]
    structure = Structure([11, 17, 11, 17], positions, field=(0.1, 0, 0))
    potential = Potential(replace(model, charges="fragments"))
    state, response = responded(potential, structure)
    pairs = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])[:, state.order]
    np.testing.assert_allclose(pairs @ response.inverse, 0.0, atol=1e-12)
    np.testing.assert_allclose(pairs @ response.known, 0.0, atol=1e-12)
    charges = response.known - response.inverse @ state.local.electronegativity
    np.testing.assert_allclose(charges, potential.compute(structure).charges[state.order], atol=1e-11)
