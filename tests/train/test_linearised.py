"""Derivatives of charges, energies and forces by everything that is learned, against differences of the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Structure
from kqeq_md.train.config import Fit
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.design import force_design, make_batch
from kqeq_md.train.fit.joint import with_constants
from kqeq_md.train.fit.linearised import linearise
from kqeq_md.train.fit.physical import parameters_of
from kqeq_md.train.fit.rows import JointRows
from kqeq_md.train.fit.start import basis_of
from kqeq_md.train.fit.unknowns import Unknowns

ONE = Fit(
    targets=["charges", "dipole"], sigma_energy=1.0, sigma_forces=1.0, sigma_charges=1.0, sigma_dipole=1.0,
    sigma_polarizability=1.0,
)  # fmt: skip


def structure_of(boundary: str) -> Structure:
    """Eight atoms, charged and in a field where it has a meaning."""
    rng = np.random.default_rng(7)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = 2.7 * grid + 0.25 * rng.normal(size=(8, 3))
    numbers = np.array([11, 17, 17, 11, 17, 11, 11, 17])[rng.permutation(8)]
    if boundary == "open":
        return Structure(numbers, positions, charge=1.0, field=[0.05, -0.1, 0.08])
    pbc = {"periodic": (True, True, True), "slab": (True, True, False)}[boundary]
    field = [0.0, 0.0, 0.07] if boundary == "slab" else [0.0, 0.0, 0.0]
    return Structure(numbers, positions, cell=np.diag([6.1, 5.9, 6.3]), pbc=pbc, charge=1.0, field=field)


def unknowns_of(model: Model, charges: str) -> tuple[Unknowns, np.ndarray]:
    """All kinds of unknowns and a random x."""
    rng = np.random.default_rng(3)
    columns = 3 if charges == "split" else 2
    points = tuple(p.astype(np.float32).astype(np.float64) for p in model.terms[0].sparse_points)
    term = replace(model.terms[0], weights=tuple(np.zeros((len(p), columns)) for p in points), sparse_points=points)
    start = replace(model, terms=(term,), charges=charges)
    kinds = ["hardness", "gaussian_width", "compliance"]
    unknowns = Unknowns(start, basis_of(points, int(term.zeta)), parameters_of(start, kinds))
    return unknowns, 0.3 * rng.normal(size=unknowns.size)


@pytest.mark.parametrize("boundary", ["open", "slab", "periodic"])
@pytest.mark.parametrize("charges", ["qeq", "split"])
def test_rows_are_the_derivative_of_the_model(charges: str, boundary: str, model: Model) -> None:
    unknowns, x = unknowns_of(model, charges)
    structure = structure_of(boundary)

    def result(at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        found = Potential(unknowns.model(at), 1e-8, 1e-13).compute(structure)
        assert found.forces is not None
        return found.energy, found.forces.ravel(), found.charges

    frame = Frame(structure, *result(x), None)
    frame = replace(frame, forces=frame.forces.reshape(-1, 3))
    potential = Potential(unknowns.model(x), 1e-8, 1e-13)
    batch = make_batch([frame], Descriptor(model.terms[0].soap, 2), model.cutoff, model.numbers)
    now = linearise(potential, potential.equilibrate(structure), unknowns.parameters)
    weights = [now.charges, *([] if now.reference_gradient is None else [now.reference_gradient]), np.ones(8)]
    designs = force_design(batch, Descriptor(model.terms[0].soap, 2), unknowns.basis, weights)
    kernel = with_constants(unknowns, batch)
    blocks = {name: rows for name, rows, _ in JointRows(unknowns, ONE, batch, kernel, designs).of(0, now)}
    blocks["energy"] = 8.0 * blocks["energy"]  # rows are per atom

    rng, step = np.random.default_rng(0), 1e-4
    directions = [rng.normal(size=unknowns.size), *np.eye(unknowns.size)[unknowns.physical]]
    for direction in directions:
        ahead, behind = result(x + step * direction), result(x - step * direction)
        for name, a, b in zip(("energy", "forces", "charges"), ahead, behind, strict=True):
            slope = (np.atleast_1d(a) - np.atleast_1d(b)) / (2.0 * step)
            # the error of differences is a third derivative times 1e-8, that of the Coulomb sum 1e-8 eV/Angstrom / step
            np.testing.assert_allclose(blocks[name] @ direction, slope, atol=3e-6 * max(1.0, np.abs(slope).max()))


@pytest.mark.parametrize("charges", ["qeq", "split"])
def test_polarizability_and_its_derivatives(charges: str, model: Model) -> None:
    unknowns, x = unknowns_of(model, charges)
    structure = structure_of("open")

    def alpha(at: np.ndarray) -> np.ndarray:
        return response(Potential(unknowns.model(at), tolerance=1e-13), structure).polarizability

    potential = Potential(unknowns.model(x), tolerance=1e-13)
    now = linearise(potential, potential.equilibrate(structure), unknowns.parameters, polarizable=True)
    assert now.polarizability is not None
    np.testing.assert_allclose(now.polarizability.value, alpha(x), atol=1e-10)  # two ways to invert one matrix
    for k, direction in enumerate(np.eye(unknowns.size)[unknowns.physical]):
        slope = (alpha(x + 1e-4 * direction) - alpha(x - 1e-4 * direction)) / 2e-4
        # a third derivative times 1e-8
        np.testing.assert_allclose(
            now.polarizability.by_parameter[..., k], slope, atol=1e-7 * np.abs(slope).max() + 1e-9
        )
