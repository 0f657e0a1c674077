"""Hardness, widths and compliances: their gradient, bounds, and whether those that made the data are found again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.errors import ConfigError
from kqeq_md.model import Model
from kqeq_md.train.config import Fit, Kernel
from kqeq_md.train.data import Frame
from kqeq_md.train.fit import fit
from kqeq_md.train.fit.charge_fit import kernels_of
from kqeq_md.train.fit.physical import LARGEST_CHANGE, LIMITS, Parameter, bounds_of, parameters_of, with_physical
from kqeq_md.train.fit.physical_fit import PhysicalFit
from kqeq_md.train.fit.start import basis_of, blank_model, choose_basis
from kqeq_md.train.fit.unknowns import CHI, REFERENCE, SHORT, prior_of, unknowns_of
from kqeq_md.units import COULOMB_CONSTANT

FIT = Fit(targets=["charges", "dipole"], sigma_charges=0.02, sigma_dipole=0.02, sigma_polarizability=0.01)

ATOMS = {"Na": -1.0, "Cl": -2.0}


def split(sets: Any, model: Model) -> Model:
    """Split charges with compliances far from any limit."""
    maker = sets.with_learned_reference(model)
    return replace(maker, compliance=np.array([[0.02, 0.05], [0.05, 0.03]]))


def physical_fit(sets: Any, maker: Model, frames: list[Frame], kinds: list[str]) -> tuple[PhysicalFit, int]:
    """With few sparse points, so that something is left of every label; and how many parameters there are."""
    config = replace(sets.small_config(maker), fit=FIT)
    blank = blank_model(frames, config)
    basis = choose_basis(frames, blank, config, sets.silent)
    unknowns = unknowns_of(blank, basis_of([p[:3] for p in basis.points], 2), parameters_of(blank, kinds))
    prior = prior_of(unknowns, FIT, (1.0,) * len(unknowns.columns), given_atoms=False)[: unknowns.charged]
    kernels = kernels_of(unknowns, Descriptor(config.descriptor, 2), frames)
    return PhysicalFit(unknowns, FIT, prior, frames, kernels), len(unknowns.parameters)


@pytest.mark.parametrize("polarizable", [False, True])
@pytest.mark.parametrize(
    ("name", "kinds", "count"),
    [("qeq", ["hardness", "gaussian_width"], 4), ("split", ["compliance", "hardness"], 5),
     ("split", ["gaussian_width"], 2)],
)  # fmt: skip
def test_gradient_of_variable_projection(
    name: str, kinds: list[str], count: int, polarizable: bool, sets: Any, model: Model, helpers: Any
) -> None:
    """df/dx at the best weights against differences of f, in which the weights are best anew at every point.

    Open frames with and without field, a cell, and a frame that counts three times.
    """
    maker = split(sets, model) if name == "split" else model
    frames = sets.random_clusters(6, 4, maker, True, polarizable)
    frames = [*frames[:3], replace(frames[3], weight=3.0), *sets.random_cells(3, 1, maker)]
    problem, found = physical_fit(sets, maker, frames, kinds)
    assert found == count
    x = 0.2 * np.random.default_rng(0).normal(size=count)
    value, gradient = problem.value(x)
    expected = helpers.five_point(lambda at: problem.value(at)[0], x, 2e-3)
    # TIGHT charges over the step, a fifth derivative times 1e-12; in the cell the ACCURACY of the Ewald sum, whose cuts
    # follow the widths
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * value + 1e-6 * np.abs(expected).max())


def test_polarizabilities_enter(sets: Any, model: Model) -> None:
    frames = sets.random_clusters(6, 4, model, True, polarizable=True)
    without = [replace(frame, polarizability=None) for frame in frames]
    values = [physical_fit(sets, model, some, ["hardness"])[0].value(np.full(2, 0.3))[0] for some in (frames, without)]
    assert values[0] > 1.1 * values[1]


def made_by_a_model_on_these_points(sets: Any, model: Model, count: int, n_points: int) -> tuple[Model, list[Frame]]:
    """A model whose sparse points are those that a fit of the frames chooses, so that it can be met exactly, and
    frames labelled by it."""
    frames = sets.random_clusters(6, count, model, True)
    config = replace(sets.small_config(model), kernel=Kernel(sparse_points=n_points))
    blank = blank_model(frames, config, ATOMS)
    unknowns = unknowns_of(blank, choose_basis(frames, blank, config, sets.silent), [])
    x, rng = np.zeros(unknowns.size), np.random.default_rng(2)
    for column, width in ((CHI, 1.0), (REFERENCE, 0.1), (SHORT, 0.3)):
        if column in unknowns.columns:
            x[unknowns.of(column)] = width * rng.normal(size=unknowns.width)
    maker = unknowns.model(x)
    return maker, [sets.labelled(frame.structure, maker, frame.place, polarizable=True) for frame in frames]


FACTORS = {
    "hardness": np.array([2.0, 0.5]),
    "gaussian_width": np.array([0.5, 2.0]),
    "compliance": np.array([[2.0, 0.5], [0.5, 2.0]]),
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [("qeq", ["hardness"]), ("qeq", ["gaussian_width"]), ("qeq", ["hardness", "gaussian_width"]),
     ("split", ["compliance"]), ("split", ["hardness", "compliance"])],
)  # fmt: skip
def test_parameters_that_made_the_data_are_found_again(
    name: str, kinds: list[str], alone: bool, sets: Any, model: Model
) -> None:
    """From starts a factor of two off, by charges and polarizabilities alone, and with energies and forces.

    Hardness and width of an element are nearly one parameter, the diagonal of J: eta + kC / (sqrt(pi) s).
    """
    model = replace(model, gaussian_width=np.array([0.7, 0.6]))
    if name == "split":
        model = replace(split(sets, model).with_weights(model.terms[0].weights), reference_charge=np.array([0.4, -0.4]))
    maker, frames = made_by_a_model_on_these_points(sets, model, 24, 8)
    if alone:
        frames = [replace(frame, energy=None, forces=None) for frame in frames]
    start = replace(maker, **{kind: FACTORS[kind] * getattr(maker, kind) for kind in kinds})
    config = sets.small_config(
        start, physical=kinds, prior_physical=10.0, sigma_energy=1e-3, sigma_forces=1e-2, sigma_charges=1e-3,
        sigma_polarizability=1e-4, rounds=0,
    )  # fmt: skip
    found = fit(frames, replace(config, kernel=Kernel(sparse_points=8)), sets.silent, ATOMS)

    def told(at: Model, kind: str) -> np.ndarray:
        if kinds != ["hardness", "gaussian_width"]:
            return np.asarray(getattr(at, kind))
        return at.hardness + COULOMB_CONSTANT / (np.sqrt(np.pi) * at.gaussian_width)

    for kind in kinds:
        assert np.abs(np.log(told(start, kind) / told(maker, kind))).min() > 0.2
        # labels without noise; iterations end where the sum of squares hardly falls, early where hardness stands beside
        # compliances
        np.testing.assert_allclose(told(found.model, kind), told(maker, kind), rtol=0.15 if alone else 0.05)
    assert found.physical == {p.name(maker.species): p.value(found.model) for p in parameters_of(found.model, kinds)}


def test_a_parameter_that_wants_beyond_its_limit_stays_there(sets: Any, model: Model) -> None:
    """Charges of atoms three times as hard as the limit."""
    hard = replace(model, hardness=np.array([300.0, 300.0]))
    frames = sets.random_clusters(6, 12, hard, True)
    start = replace(model, hardness=np.array([60.0, 60.0]))
    config = sets.small_config(start, physical=["hardness"], prior_physical=5.0, sigma_charges=1e-4, rounds=0)
    found = fit(frames, config, sets.silent).model.hardness
    assert (found <= LIMITS["hardness"][1] * (1.0 + 1e-12)).all()
    assert found.max() > 99.0


def test_bounds_follow_the_start(sets: Any, model: Model) -> None:
    maker = split(sets, model)
    parameters = parameters_of(maker, ["hardness", "gaussian_width", "compliance"])
    assert [p.name(maker.species) for p in parameters] == [
        "hardness Na", "hardness Cl", "gaussian_width Na", "gaussian_width Cl",
        "compliance Na-Na", "compliance Na-Cl", "compliance Cl-Cl",
    ]  # fmt: skip
    bounds = bounds_of(maker, parameters)
    assert (np.abs(bounds) <= LARGEST_CHANGE).all()
    for edge in bounds.T:
        moved = with_physical(maker, parameters, edge)
        for parameter in parameters:
            low, high = LIMITS[parameter.kind]
            assert low * (1 - 1e-12) <= parameter.value(moved) <= high * (1 + 1e-12)
        np.testing.assert_array_equal(moved.compliance, moved.compliance.T)
    np.testing.assert_array_equal(with_physical(maker, parameters, np.zeros(7)).compliance, maker.compliance)


def test_compliances_are_for_split_charges_alone(model: Model) -> None:
    assert parameters_of(model, ["compliance"]) == []
    assert parameters_of(model, ["compliance", "hardness"]) == [
        Parameter("hardness", (0,)),
        Parameter("hardness", (1,)),
    ]


@pytest.mark.parametrize(("kind", "value"), [("hardness", 0.0), ("hardness", 120.0), ("gaussian_width", 0.1)])
def test_starts_outside_of_the_limits_are_refused(kind: str, value: float, model: Model) -> None:
    low, high = LIMITS[kind]
    start = replace(model, **{kind: np.array([1.0, value])})
    message = f"`fit.physical` needs start values between {low:g} and {high:g}, got {value:g} for {kind} Cl"
    with pytest.raises(ConfigError, match=message):
        parameters_of(start, [kind])
