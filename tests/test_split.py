"""Split charges: against the minimum over bond variables, closed forms, limits, other solvers, and their own past."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import erf, pi, sqrt
from typing import Any

import numpy as np
import pytest

from kqeq_md.charges.equilibrate import Equilibrium
from kqeq_md.charges.split import find_bonds
from kqeq_md.electrostatics import coulomb
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.errors import ChargeError
from kqeq_md.model import Model, usual_compliance
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.potential import Potential
from kqeq_md.ranks.halo import SERIAL
from kqeq_md.response import response
from kqeq_md.structure import Result, Structure
from kqeq_md.units import COULOMB_CONSTANT

FINE = {"accuracy": 1e-9, "tolerance": 1e-12}
FIELD = (0.03, -0.05, 0.08)
SKEW = np.array([[0.0, 0.3, 0.0], [0.0, 0.0, 0.3], [0.0, 0.0, 0.1]])


@dataclass(frozen=True)
class Dense:
    """What the energy formula needs, from its definitions: J, one row for each bond (an image counts once), q0."""

    chi: np.ndarray
    matrix: np.ndarray
    incidence: np.ndarray  # B: -1 for the atom that gives, 1 for the one that takes, (n, n_bonds); 0 for its own image
    vectors: np.ndarray
    compliance: np.ndarray
    q0: np.ndarray
    structure: Structure

    @property
    def root(self) -> np.ndarray:
        return np.sqrt(self.compliance)

    def minimum(self) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        """x, q, E, mu of E(x) = chi.q + 1/2 q.J q + 1/2 x.x - F.mu, q = q0 + B sqrt(c) x."""
        field, r = self.structure.field, self.structure.positions
        b = self.incidence * self.root
        hessian = np.eye(len(self.root)) + b.T @ self.matrix @ b
        x = np.linalg.solve(hessian, self.root * (self.vectors @ field) - b.T @ (self.chi + self.matrix @ self.q0))
        q = self.q0 + b @ x
        mu = self.q0 @ r + (self.root * x) @ self.vectors
        return x, q, float(self.chi @ q + 0.5 * q @ self.matrix @ q + 0.5 * x @ x - field @ mu), mu

    def saddle_point(self) -> np.ndarray:
        """q of ACKS2 with X = -B K^-1 B^T, K = 1/c: J q + v = -chi, q + X v = q0 + B c (F.d); no field here."""
        n = len(self.q0)
        response = -self.incidence @ np.diag(1 / (1 / self.compliance)) @ self.incidence.T
        equations = np.block([[self.matrix, np.eye(n)], [np.eye(n), response]])
        driven = self.incidence @ (self.compliance * (self.vectors @ self.structure.field))
        return np.linalg.solve(equations, np.concatenate([-self.chi, self.q0 + driven]))[:n]


def dense(model: Model, structure: Structure, helpers: Any) -> Dense:
    """By brute force over all images, for an `element_model`."""
    species = np.array([model.numbers.index(z) for z in structure.numbers])
    n, r, cutoff = len(structure), structure.positions, float(model.compliance_cutoff[0, 0])
    images = np.zeros((1, 3))
    if any(structure.pbc):
        images = np.array(list(helpers.shifts(structure.cell, cutoff + np.ptp(r, axis=0).sum())))
        cells = images @ np.linalg.inv(structure.cell)
        images = images[(np.abs(cells[:, ~np.array(structure.pbc)]) < 0.5).all(axis=1)]
    columns, vectors, compliance = [], [], []
    for t in images:
        for i in range(n):
            for j in range(i, n):
                d = r[j] + t - r[i]
                own = i == j and tuple(t) <= (0.0, 0.0, 0.0)  # of an atom's images at t and -t one is a bond
                if own or np.linalg.norm(d) >= cutoff:
                    continue
                columns.append((np.arange(n) == j).astype(float) - (np.arange(n) == i))
                vectors.append(d)
                c0 = model.compliance[species[i], species[j]]
                compliance.append(c0 * (1 - (d @ d) / cutoff**2) ** 3)
    width, hardness = model.gaussian_width[species], model.hardness[species]
    if structure.boundary == "open":
        matrix = DirectCoulomb(r, width, hardness).matrix()
    else:
        matrix = EwaldCoulomb(r, structure.cell, width, hardness, 1e-12, structure.open_axis).matrix()
    q0 = model.reference_charge[species]
    q0 = q0 + (structure.charge - q0.sum()) / n
    return Dense(
        model.electronegativity_offset[species], matrix, np.array(columns).T, np.array(vectors), np.array(compliance),
        q0, structure,
    )  # fmt: skip


def small(boundary: str, helpers: Any, **kwargs: Any) -> Structure:
    """A few molecules; periodic cells are narrower than the range of bonds, which reach several images."""
    if boundary == "open":
        return helpers.water_box((2, 2, 1), pbc=False, **kwargs)
    if boundary == "slab":
        return helpers.water_box((1, 2, 1), pbc=(True, True, False), **kwargs)
    return helpers.water_box(1, strain=SKEW if boundary == "triclinic" else None, **kwargs)


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("reference", [(0.0, 0.0), (0.4, -0.8), (0.5, 0.2)])
@pytest.mark.parametrize("field", [(0, 0, 0), FIELD])
@pytest.mark.parametrize("boundary", ["open", "slab", "cubic", "triclinic"])
def test_minimum_over_bonds(
    boundary: str, field: tuple[float, ...], reference: tuple[float, float], charge: float, helpers: Any
) -> None:
    """And the saddle point of ACKS2, whose unknowns are charges and potentials."""
    model = helpers.element_model(reference_charge=np.array(reference))
    structure = small(boundary, helpers, charge=charge, field=field)
    formula = dense(model, structure, helpers)
    assert boundary == "open" or len(formula.root) > 2 * len(structure)
    _, q, energy, mu = formula.minimum()
    got = Potential(model, accuracy=1e-11, tolerance=1e-13).compute(structure)
    # the mesh: 1e-11 eV/A of forces, some Angstrom times as much in energies
    np.testing.assert_allclose(got.charges, q, atol=1e-9)
    assert got.energy == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(got.dipole, mu, atol=1e-9)
    np.testing.assert_allclose(got.charges, formula.saddle_point(), atol=1e-9)


# --- closed forms


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("field", [0.0, 0.2])
def test_two_atoms_in_closed_form(charge: float, field: float, helpers: Any) -> None:
    """p (1/c + J_11 + J_22 - 2 J_12) = F d + (chi_1 + (J q0)_1) - (chi_2 + (J q0)_2) from atom 1 to atom 2."""
    model, d = helpers.element_model(reference_charge=np.array([0.3, -0.1])), 1.1
    (s1, s2), (chi1, chi2) = model.gaussian_width, model.electronegativity_offset
    j11, j22 = model.hardness + COULOMB_CONSTANT / (sqrt(pi) * model.gaussian_width)
    j12 = COULOMB_CONSTANT * erf(d / sqrt(2 * (s1**2 + s2**2))) / d
    a, b = np.array([0.3, -0.1]) + (charge - 0.2) / 2
    c = 0.08 * (1 - (d / 4.2) ** 2) ** 3
    p = (field * d + chi1 - chi2 + (j11 - j12) * a - (j22 - j12) * b) / (1 / c + j11 + j22 - 2 * j12)
    q = a - p, b + p
    electrostatic = chi1 * q[0] + chi2 * q[1] + 0.5 * (j11 * q[0] ** 2 + j22 * q[1] ** 2) + j12 * q[0] * q[1]
    energy = electrostatic + 0.5 * p**2 / c - field * (b * d + p * d)
    got = Potential(model).compute(Structure([1, 8], [[0, 0, 0], [0, 0, d]], charge=charge, field=[0, 0, field]))
    np.testing.assert_allclose(got.charges, q, rtol=1e-12)  # rounding
    assert got.energy == pytest.approx(energy, rel=1e-12)
    assert got.dipole[2] == pytest.approx((b + p) * d, rel=1e-12)


def test_an_atom_bonded_to_its_images_alone(helpers: Any) -> None:
    """No charge moves, but a current flows: alpha = sum over bonds of c d d, E = -F.alpha.F / 2, each bond once."""
    cell = np.array([[2.9, 0, 0], [0.4, 3.1, 0], [-0.3, 0.5, 2.7]])
    model = helpers.element_model()
    lattice = (np.array(list(np.ndindex(7, 7, 7))) - 3) @ cell
    c = 0.03 * np.maximum(1 - (lattice**2).sum(axis=1) / 4.2**2, 0) ** 3
    alpha = 0.5 * np.einsum("b,ba,bc->ac", c, lattice, lattice)
    field = np.array(FIELD)
    one = Structure([8], [[0.1, 0.2, 0.3]], cell=cell, pbc=True)
    potential = Potential(model)
    got, bare = potential.compute(replace(one, field=field)), potential.compute(one)
    assert got.energy - bare.energy == pytest.approx(-0.5 * field @ alpha @ field, rel=1e-9)
    np.testing.assert_allclose(got.dipole, alpha @ field, rtol=1e-12)
    assert got.charges.tolist() == [0.0]


def test_one_atom(helpers: Any) -> None:
    got = Potential(helpers.element_model()).compute(Structure([8], [[1.0, 2.0, 3.0]], charge=-1.0, field=FIELD))
    assert got.charges.tolist() == [-1.0]
    np.testing.assert_allclose(got.dipole, [-1.0, -2.0, -3.0], rtol=1e-15)


@pytest.mark.parametrize("how", ["no compliance", "far apart"])
@pytest.mark.parametrize("pbc", [False, True])
def test_no_bonds_leave_the_reference_charges(how: str, pbc: bool, helpers: Any) -> None:
    """q = q0, E = chi.q0 + 1/2 q0 J q0 - F.sum q0 R."""
    model, positions = helpers.element_model(reference_charge=np.array([0.4, -0.8])), 5.0 * np.eye(3)
    if how == "no compliance":
        model, positions = replace(model, compliance=np.zeros((2, 2))), 1.5 * np.eye(3)
    structure = Structure([8, 1, 1], positions, cell=13.0 * np.eye(3), pbc=pbc, field=FIELD)
    got = Potential(model, **FINE).compute(structure)
    q0 = np.array([-0.8, 0.4, 0.4])
    np.testing.assert_allclose(got.charges, q0, atol=1e-16)
    np.testing.assert_allclose(got.dipole, q0 @ positions, rtol=1e-14)
    width, hardness = model.gaussian_width[[1, 0, 0]], model.hardness[[1, 0, 0]]
    exact = EwaldCoulomb(positions, structure.cell, width, hardness, 1e-11) if pbc else None
    matrix = exact.matrix() if exact else DirectCoulomb(positions, width, hardness).matrix()
    energy = np.array([8.5, 4.5, 4.5]) @ q0 + 0.5 * q0 @ matrix @ q0 - got.dipole @ FIELD
    assert got.energy == pytest.approx(energy, abs=1e-8)


# --- limits


def molecules_alone(compliance: float, helpers: Any) -> Model:
    """Bonds that end between the atoms of a molecule and the next one."""
    return helpers.element_model(compliance=np.full((2, 2), compliance), compliance_cutoff=1.75)


@pytest.mark.parametrize("pbc", [False, True])
def test_large_compliance_within_molecules_is_qeq_of_each(pbc: bool, helpers: Any) -> None:
    """q - q_fragments goes as 1/c: E has c^-1 p^2 / 2 beside that of the same charges flowing freely in a molecule."""
    structure = helpers.water_box((2, 2, 1), pbc=pbc, field=(0.05, 0, 0.1))
    wanted = Potential(molecules_alone(0.0, helpers), **FINE, charges="fragments").compute(structure)
    off = []
    for compliance in (1e2, 1e4):
        got = Potential(molecules_alone(compliance, helpers), **FINE).compute(structure)
        # molecules exchange nothing; potentials of 10 V times c round to 1e-16 of 1e5 e
        assert np.abs(got.charges.reshape(-1, 3).sum(axis=1)).max() < 1e-8
        off.append((np.abs(got.charges - wanted.charges).max(), abs(got.energy - wanted.energy)))
    assert 1e-6 < off[0][0] < 1e-2
    np.testing.assert_allclose(np.array(off[0]) / np.array(off[1]), 100.0, rtol=0.05)


def test_large_compliance_in_one_molecule_is_its_qeq(helpers: Any) -> None:
    structure = helpers.water_box(1, pbc=False, charge=1.0, field=FIELD)
    qeq = Potential(molecules_alone(1.0, helpers), charges="qeq").compute(structure)
    got = Potential(molecules_alone(1e6, helpers), charges="split").compute(structure)
    np.testing.assert_allclose(got.charges, qeq.charges, atol=1e-7)  # 1e-6 V/e^2 of a bond in 10


def test_small_compliance_is_first_order_in_electronegativity_differences(helpers: Any) -> None:
    """q - q0 -> sum_j c_ij (chi_j - chi_i): as in QTPIE, pairs transfer by their overlap and their difference of chi.

    This is where both must agree: before charges act on each other.
    """
    structure = helpers.water_box((2, 1, 1), pbc=False)
    usual = helpers.element_model()
    off = []
    for factor in (1e-3, 1e-5):
        model = replace(usual, compliance=factor * usual.compliance)
        got = Potential(model).compute(structure)
        distance = np.linalg.norm(structure.positions[:, None] - structure.positions, axis=2)
        species = (structure.numbers == 8).astype(int)
        c = model.compliance[species][:, species] * np.maximum(1 - (distance / 4.2) ** 2, 0) ** 3
        chi = usual.electronegativity_offset[species]
        first_order = (c * (chi[None] - chi[:, None])).sum(axis=1)
        off.append(np.abs(got.charges - first_order).max() / np.abs(first_order).max())
    assert off[0] < 0.02
    assert off[1] < 0.011 * off[0]


@pytest.mark.parametrize("charges", ["split", "fragments"])
def test_salt_dissociates_into_what_q0_says(charges: str, helpers: Any) -> None:
    """Neutral atoms for q0 = 0, ions for q0 = 1: exactly."""
    model = helpers.element_model(("Na", "Cl"))
    for ion in (0.0, 1.0):
        settings: dict[str, Any] = {"reference_charges": {"Na": ion, "Cl": -ion}}
        if charges == "fragments":
            settings = {"fragments": [0, 1], "fragment_charges": [ion, -ion]}
        potential = Potential(model, charges=charges, **settings)
        for d in (5.0, 50.0):
            got = potential.compute(Structure([11, 17], [[0, 0, 0], [0, 0, d]]))
            np.testing.assert_allclose(got.charges, [ion, -ion], atol=1e-12)
    leaks = Potential(model, charges="qeq").compute(Structure([11, 17], [[0, 0, 0], [0, 0, 50.0]]))
    assert leaks.charges[0] > 0.05  # the disease is there to be cured


@pytest.mark.parametrize("distance", [10.0, 20.0, 40.0])
@pytest.mark.parametrize("charges", ["split", "fragments", "qeq"])
def test_two_waters_in_a_field_exchange_nothing(distance: float, charges: str, helpers: Any) -> None:
    one = helpers.water_box(1, pbc=False)
    both = Structure(
        np.tile(one.numbers, 2), np.concatenate([one.positions, one.positions + [0, 0, distance]]), field=(0, 0, 0.2)
    )
    got = Potential(helpers.element_model(), charges=charges).compute(both)
    transfer = abs(got.charges[:3].sum())
    assert (transfer < 1e-6) == (charges != "qeq")
    if charges == "qeq":
        assert transfer > 0.05  # e


def test_polarizability_of_a_chain_is_extensive(helpers: Any) -> None:
    """All-trans alkanes: the exponent of alpha along the chain with its length is 1 at C32, and about 3 for a wire."""
    symbols = ("H", "C")
    compliance, cutoff = usual_compliance(symbols)
    model = helpers.element_model(
        symbols, electronegativity_offset=np.array([4.53, 5.34]), compliance=compliance, compliance_cutoff=cutoff
    )  # fmt: skip

    def alpha(carbons: int, charges: str) -> float:
        k = np.arange(carbons)
        carbon = np.stack([0.43 * (-1.0) ** k, 0 * k, 1.265 * k], axis=1)
        sides = [carbon + np.stack([0.63 * (-1.0) ** k, s * 0.89 + 0 * k, 0 * k], axis=1) for s in (-1, 1)]
        ends = carbon[[0, -1]] + [[-0.36, 0, -1.03], [-0.36 * (-1.0) ** (carbons + 1), 0, 1.03]]
        positions, numbers = np.concatenate([carbon, *sides, ends]), [6] * carbons + [1] * (2 * carbons + 2)
        return float(response(Potential(model, charges=charges), Structure(numbers, positions)).polarizability[2, 2])

    for charges, low, high in (("qeq", 1.8, 3.0), ("split", 0.9, 1.1)):
        exponent = np.log(alpha(32, charges) / alpha(16, charges)) / np.log(2)
        assert low < exponent < high, charges


# --- bonds


def test_compliance_and_its_slope(helpers: Any) -> None:
    """c0 (1 - (r/r_c)^2)^3, its derivative, and at the cutoff no c, no slope, and no kink of sqrt(c)."""
    table, cutoff = np.array([[0.02, 0.08], [0.08, 0.03]]), 4.2

    def bond(r: float) -> tuple[float, float]:
        pairs = find_pairs(Structure([1, 8], [[0, 0, 0], [0, 0, r]]), 6.0)
        bonds = find_bonds(pairs, np.array([0, 1]), table, np.full((2, 2), cutoff), SERIAL)
        if r >= cutoff:
            assert len(bonds.neighbour) == 0
            return 0.0, 0.0
        assert len(bonds.neighbour) == 2  # in both directions
        return bonds.compliance[0], bonds.slope[0]

    for r in (0.5, 1.7, 4.0, 4.19):
        assert bond(r)[0] == pytest.approx(0.08 * (1 - (r / cutoff) ** 2) ** 3, rel=1e-13)
        wanted = helpers.five_point(lambda x: bond(x[0])[0], np.array([r]), 1e-3)[0]
        assert bond(r)[1] == pytest.approx(wanted, abs=1e-12)
    for gap in (1e-3, 1e-4):
        c, slope = bond(cutoff - gap)
        # sqrt(c) = sqrt(c0) (2 gap / r_c)^1.5: its slope goes with the root of the gap
        assert 0.5 * slope / sqrt(c) == pytest.approx(-1.5 * sqrt(0.08) * (2 / cutoff) ** 1.5 * sqrt(gap), rel=1e-3)
    assert bond(cutoff) == bond(4.5) == (0.0, 0.0)


def test_element_pairs_without_compliance_are_not_bonded(helpers: Any) -> None:
    table = np.array([[0.0, 0.08], [0.08, 0.0]])
    structure = helpers.water_box(2)
    bonds = find_bonds(
        find_pairs(structure, 4.2), (structure.numbers == 8).astype(int), table, np.full((2, 2), 4.2), SERIAL
    )
    centre = np.repeat(np.arange(len(structure)), np.diff(bonds.first))
    assert len(centre) > 0
    assert ((structure.numbers[centre] == 8) != (structure.numbers[bonds.neighbour] == 8)).all()


@pytest.mark.parametrize("reference", [(0.0, 0.0), (0.4, -0.8)])
def test_energy_and_forces_are_smooth_where_a_bond_ends(water: Model, reference: Any, helpers: Any) -> None:
    """Second differences across the cutoff stay as small as beside it."""
    model, gap = helpers.split_model(water, reference, 0.1), 1e-4
    potential = Potential(model, **FINE)
    still = helpers.water_box(1, pbc=False)

    def at(r: float) -> tuple[float, float]:
        atoms = Structure(
            [*still.numbers, 1], np.concatenate([still.positions, still.positions[:1] + [0, 0, r]]), field=FIELD
        )
        got = potential.compute(atoms)
        return got.energy, float(got.forces[3, 2])

    across, beside = (np.array([at(middle + k * gap) for k in (-1, 0, 1)]) for middle in (4.2, 4.2 + 30 * gap))
    jump, usual = (np.abs(line[0] - 2 * line[1] + line[2]) for line in (across, beside))
    # a kink of the energy would show as gap times some 0.1 eV/A, one of the force as gap times as much per A
    assert jump[0] < usual[0] + 1e-9
    assert jump[1] < usual[1] + 1e-7


# --- learned reference charges


@pytest.mark.parametrize("fragments", [None, "connectivity"])
@pytest.mark.parametrize("pbc", [False, True])
def test_derivative_in_learned_weights(water: Model, fragments: Any, pbc: bool, helpers: Any) -> None:
    """dE/dw0 = K^T a with a of `reference_gradient`, along a random direction of all weights."""
    model = helpers.split_model(water, (0.4, -0.8), 0.1)
    field = FIELD if fragments or not pbc else (0, 0, 0)
    structure = helpers.water_box((2, 1, 1), pbc=pbc, field=field)
    rng = np.random.default_rng(4)
    direction = [np.stack([0 * w[:, 0], 0 * w[:, 0], rng.normal(size=len(w))], axis=1) for w in model.terms[0].weights]

    def at(step: float) -> Potential:
        weights = tuple(w + step * d for w, d in zip(model.terms[0].weights, direction, strict=True))
        return Potential(model.with_weights(weights), **FINE, fragments=fragments)

    # quadratic in w0: exact differences, but for rounding of 100 eV / 0.1
    wanted = (at(0.1).compute(structure).energy - at(-0.1).compute(structure).energy) / 0.2
    here, ahead = at(0.0).equilibrate(structure), at(1.0).equilibrate(structure)
    change = ahead.local.reference_charge - here.local.reference_charge
    assert abs(wanted) > 0.1
    assert here.reference_gradient @ change == pytest.approx(wanted, abs=1e-9 * max(1.0, abs(wanted)) + 1e-9)


@pytest.mark.parametrize("fragments", [None, "connectivity"])
def test_residual_of_learned_charges(water: Model, fragments: Any, helpers: Any) -> None:
    """What the sums of q0 miss of Q, or of the fragments' charges, is reported, and spread evenly."""
    stiff = replace(helpers.split_model(water, (0.4, -0.8), 0.1), compliance=np.zeros((2, 2)))
    structure = helpers.water_box((2, 1, 1), pbc=False, charge=1.0)
    held = {} if fragments is None else {"fragments": fragments, "fragment_charges": [0.0, 1.0]}
    potential = Potential(stiff, **held)
    got, raw = potential.compute(structure), potential.equilibrate(structure).local.reference_charge
    if fragments is None:
        np.testing.assert_allclose(got.reference_residual, [1.0 - raw.sum()], rtol=1e-12)
        np.testing.assert_allclose(got.charges, raw + got.reference_residual / 6, atol=1e-14)
    else:
        np.testing.assert_allclose(got.reference_residual, [-raw[:3].sum(), 1.0 - raw[3:].sum()], rtol=1e-12)
        np.testing.assert_allclose(got.charges, raw + np.repeat(got.reference_residual, 3) / 3, atol=1e-14)
    assert np.ptp(raw[[1, 2, 4, 5]]) > 1e-3  # the kernel tells atoms of an element apart
    assert Potential(stiff, charges="qeq").compute(structure).reference_residual is None
    assert Potential(stiff, reference_charges={"H": 0.3}).compute(structure).reference_residual is None


def test_given_reference_charges_replace_learned_ones(water: Model, helpers: Any) -> None:
    model, structure = helpers.split_model(water, (0.4, -0.8), 0.1), helpers.water_box((2, 1, 1), pbc=False)
    fixed = helpers.split_model(water, (0.3, -0.6))
    got = Potential(model, reference_charges={"H": 0.3, "O": -0.6}).compute(structure)
    wanted = Potential(fixed).compute(structure)
    np.testing.assert_allclose(got.charges, wanted.charges, atol=1e-14)
    assert got.energy == pytest.approx(wanted.energy, rel=1e-13)


# --- how they are found


def bound(potential: Potential, structure: Structure, got: Equilibrium) -> float:
    """Norm of the error of charges that a residual of the tolerance leaves, e.

    In terms of x the Hessian is 1 at least, and |B sqrt(c) dx|^2 <= 2 max_i (sum_j c_ij) |dx|^2.
    """
    bonds = potential.equilibrate(structure).problem.bonds
    drive = sqrt(0.5 * bonds.compliance @ got.tension**2)
    # the drive of charges that have not begun to flow is some times that of the end
    return 10.0 * potential.tolerance * drive * sqrt(2 * bonds.per_atom(bonds.compliance).max())


@pytest.mark.parametrize("tolerance", [1e-5, 1e-10])
@pytest.mark.parametrize("reference", [(0.0, 0.0), (0.4, -0.8)])
def test_iteration_equals_the_factorisation(
    monkeypatch: pytest.MonkeyPatch, reference: Any, tolerance: float, helpers: Any
) -> None:
    """81 atoms, open, in a field: dense, by conjugate gradients with the direct sum, and with a mesh."""
    model = helpers.element_model(reference_charge=np.array(reference))
    structure = helpers.water_box(3, pbc=False, charge=1.0, field=FIELD)
    wanted = Potential(model, 1e-10, 1e-12).compute(structure)
    monkeypatch.setattr("kqeq_md.charges.equilibrate.SMALL", 0)
    for per_pair in (0.0, 1e9):
        monkeypatch.setattr(coulomb, "SMALL", 0)
        monkeypatch.setattr(coulomb, "PER_DIRECT_PAIR", per_pair)
        potential = Potential(model, 1e-10, tolerance)
        state = potential.equilibrate(structure)
        assert state.equilibrium.iterations > 0
        got = potential.compute(structure)
        error = bound(potential, structure, state.equilibrium)
        assert np.linalg.norm(got.charges - wanted.charges) < error + 1e-9  # the mesh
        assert got.energy == pytest.approx(wanted.energy, abs=10.0 * error + 1e-8)  # potentials of some V
        np.testing.assert_allclose(got.forces, wanted.forces, atol=10.0 * error + 1e-8)


@pytest.mark.parametrize("boundary", ["open", "slab", "periodic"])
def test_rough_products_are_as_good(monkeypatch: pytest.MonkeyPatch, boundary: str, water: Model, helpers: Any) -> None:
    """1,029 atoms, whose corrections are found with a rough mesh: as with the fine one alone, open ones as directly."""
    pbc: Any = {"open": False, "slab": (True, True, False)}.get(boundary, True)
    structure = helpers.water_box(7, pbc=pbc, field=FIELD)
    model = helpers.split_model(water, (0.4, -0.8))
    rough = Potential(model, 1e-6, 1e-8)
    got = rough.compute(structure)
    state = rough.equilibrate(structure)
    assert boundary == "open" or state.problem.coulomb.roughness > 0.0
    monkeypatch.setattr(coulomb, "LARGE", 10**6)
    if boundary == "open":
        monkeypatch.setattr("kqeq_md.charges.equilibrate.SMALL", 10**6)
        monkeypatch.setattr(coulomb, "SMALL", 10**6)
    wanted = Potential(model, 1e-6, 1e-12).compute(structure)
    assert np.linalg.norm(got.charges - wanted.charges) < bound(rough, structure, state.equilibrium) + 2e-6  # the mesh
    assert got.energy == pytest.approx(wanted.energy, abs=1e-4)  # 1e-6 eV/A, three Angstrom, root of 1,029 charges
    np.testing.assert_allclose(got.forces, wanted.forces, atol=1e-5)


def frame(kind: str, t: float, helpers: Any, **kwargs: Any) -> Structure:
    """Time t of a smooth trajectory, 0.02 A for each unit of time."""
    pbc: Any = {"slab": (True, True, False), "periodic": True}.get(kind, False)
    still = helpers.water_box(2 if kind != "large" else 6, pbc=pbc, **kwargs)
    rng = np.random.default_rng(9)
    amplitude, phase = rng.uniform(0, 0.1, still.positions.shape), rng.uniform(0, 2 * np.pi, still.positions.shape)
    return replace(still, positions=still.positions + amplitude * np.sin(0.3 * t + phase))


def agree(used: Potential, structure: Structure) -> Result:
    """The next result is that of a new potential that is far more precise, within what the tolerance promises."""
    got = used.compute(structure)
    exact = Potential(used.model, used.accuracy, 1e-12)
    new, state = exact.compute(structure), exact.equilibrate(structure)
    error = bound(used, structure, state.equilibrium)
    assert np.linalg.norm(got.charges - new.charges) < error + 1e-11
    assert got.energy == pytest.approx(new.energy, abs=10.0 * error + 1e-9)  # potentials of some V
    np.testing.assert_allclose(got.forces, new.forces, atol=10.0 * error + 1e-9)
    return got


@pytest.mark.parametrize("kind", ["open", "slab", "periodic", "large"])
@pytest.mark.parametrize("learned", [0.0, 0.1])
def test_trajectory_ends_where_a_fresh_start_does(water: Model, kind: str, learned: float, helpers: Any) -> None:
    model = helpers.split_model(water, (0.4, -0.8), learned)
    used = Potential(model, tolerance=1e-6)
    for t in range(12):
        used.compute(frame(kind, t, helpers), want=())
    agree(used, frame(kind, 12, helpers))


@pytest.mark.parametrize("tolerance", [1e-5, 1e-10])
@pytest.mark.parametrize("repeats", [1, 2, 6])
def test_field_may_change_after_standing_still(water: Model, repeats: int, tolerance: float, helpers: Any) -> None:
    """Equal potentials, or equal to rounding, are no direction to go on with."""
    used = Potential(helpers.split_model(water, (0.4, -0.8)), tolerance=tolerance)
    for field in (0.0, 0.3, 0.0, -0.3, 0.02):
        for shift in range(repeats):
            here = frame("periodic", 0, helpers, field=(0, field, field))
            agree(used, replace(here, positions=here.positions + shift * here.cell[0]))


def test_settings_may_change(water: Model, helpers: Any) -> None:
    used = Potential(helpers.split_model(water, (0.4, -0.8)), tolerance=1e-8)
    seen = []
    for kind, charge, field in (
        ("slab", 0.0, 0.0), ("slab", 1.0, 0.0), ("slab", 1.0, 0.1), ("periodic", 1.0, 0.1), ("periodic", 0.0, 0.1),
        ("open", 0.0, 0.1), ("large", 0.0, 0.1), ("slab", 0.0, 0.0),
    ):  # fmt: skip
        seen.append(agree(used, frame(kind, 0, helpers, charge=charge, field=(field, 0, field))).energy)
    assert seen[-1] == pytest.approx(seen[0], abs=1e-9)
    assert len(np.unique(np.round(seen, 3))) == len(seen) - 1  # each setting counts


def test_following_steps_take_fewer_iterations(water: Model, iterations: list[int], helpers: Any) -> None:
    used = Potential(helpers.split_model(water, (0.4, -0.8)))
    for t in range(16):
        used.compute(frame("periodic", 0.3 * t, helpers), want=())
    assert max(iterations[10:]) <= 0.6 * iterations[0]


def test_iterations_do_not_grow_with_size(iterations: list[int], helpers: Any) -> None:
    """1,029 and 8,232 atoms, from nothing and from the step before."""
    for repeats in (7, 14):
        potential, still = Potential(helpers.element_model()), helpers.water_box(repeats)
        velocity = 0.01 * np.random.default_rng(3).normal(size=still.positions.shape)
        for step in range(3):
            potential.compute(replace(still, positions=still.positions + step * velocity), want=())
    cold, warm = iterations[0::3], iterations[2::3]
    assert cold[1] <= 1.2 * cold[0]
    assert warm[1] <= 1.2 * warm[0] + 1


# --- what is refused


@pytest.mark.parametrize("boundary", ["open", "iterated", "slab", "periodic"])
@pytest.mark.parametrize("hardness", [(-30.0, 9.0), (-20.0, -20.0)])
def test_negative_hardness_is_refused(
    boundary: str, hardness: tuple[float, float], monkeypatch: pytest.MonkeyPatch, helpers: Any
) -> None:
    """Beyond what bonds resist."""
    if boundary == "iterated":
        monkeypatch.setattr("kqeq_md.charges.equilibrate.SMALL", 0)
    pbc: Any = {"slab": (True, True, False), "periodic": True}.get(boundary, False)
    structure, usual = helpers.water_box(2, pbc=pbc), helpers.element_model()
    soft = replace(usual, hardness=np.array(hardness), compliance=10.0 * usual.compliance)
    with pytest.raises(ChargeError, match="`hardness` is too") as caught:
        Potential(soft).compute(structure)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("boundary", ["open", "cubic"])
def test_bonds_hold_what_hardness_does_not(boundary: str, helpers: Any) -> None:
    """With stiff bonds the Hessian over them is positive although J is not; where it stops being so, answers end."""
    usual, structure = helpers.element_model(hardness=np.array([-20.0, -9.0])), small(boundary, helpers)
    outcomes = set()
    for factor in (0.1, 0.3, 1.0, 3.0, 10.0):
        model = replace(usual, compliance=factor * usual.compliance)
        formula = dense(model, structure, helpers)
        b = formula.incidence * formula.root
        lowest = np.linalg.eigvalsh(np.eye(len(formula.root)) + b.T @ formula.matrix @ b)[0]
        assert abs(lowest) > 0.02  # clear cases
        outcomes.add(lowest > 0)
        if lowest > 0:
            got = Potential(model, 1e-9, 1e-10).compute(structure)
            np.testing.assert_allclose(got.charges, formula.minimum()[1], atol=1e-6)
        else:
            with pytest.raises(ChargeError, match="`hardness` is too"):
                Potential(model).compute(structure)
    assert outcomes == {True, False}


def test_overflow_is_refused(helpers: Any) -> None:
    for pbc in (False, True):
        with pytest.raises(ChargeError, match="must be finite"):
            Potential(helpers.element_model()).compute(helpers.water_box(1, pbc=pbc, charge=1e300))
