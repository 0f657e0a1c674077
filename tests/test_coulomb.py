"""Gaussian charges: closed formulas, published lattice sums, an independent Ewald sum, finite differences."""

from __future__ import annotations

from itertools import product
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.data import covalent_radii
from ase.io import read
from scipy.special import erf, erfc, factorial

from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.ewald import EwaldCoulomb, half_space_wave_vectors
from kqeq_md.electrostatics.gaussians import exponent, screened
from kqeq_md.neighbours.half_list import NeighbourList
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT

CELLS = {
    "cubic": 8.0 * np.eye(3),
    "orthorhombic": np.diag([6.0, 9.0, 7.5]),
    "flat": np.diag([20.0, 18.0, 3.0]),
    "needle": np.diag([3.0, 3.2, 40.0]),
    "triclinic": np.array([[8.0, 0, 0], [7.0, 6.0, 0], [-6.0, 5.0, 7.0]]),
    "very skewed": np.array([[6.0, 0, 0], [15.0, 5.0, 0], [9.0, -12.0, 6.0]]),
    "left-handed": np.array([[0, 6.0, 0], [7.0, 0, 0], [0, 1.0, 8.0]]),
}


def gaussians(cell: np.ndarray, n: int, seed: int, narrow: float = 0.3, wide: float = 2.0) -> tuple[np.ndarray, ...]:
    """Random positions, widths and charges of rms 1 e."""
    rng = np.random.default_rng(seed)
    charges = rng.normal(size=n)
    return rng.random((n, 3)) @ cell, rng.uniform(narrow, wide, n), charges / np.sqrt(np.mean(charges**2))


def reference_matrix(r: np.ndarray, cell: np.ndarray, width: np.ndarray, alpha: float, helpers: Any) -> np.ndarray:
    """J without hardness: Ewald sum in the erfc form with its own splitting, summed until terms are below 1e-16."""
    volume, g = abs(np.linalg.det(cell)), 1 / np.sqrt(2 * (width[:, None] ** 2 + width**2))
    d = r[:, None] - r
    out = -pi / volume * (1 / alpha**2 - 1 / g**2)
    for shift in helpers.shifts(cell, 6.2 / min(alpha, g.min()) + np.linalg.norm(cell, axis=1).sum()):
        distance = np.linalg.norm(d + shift, axis=2)
        home = distance < 1e-9
        distance[home] = 1.0
        term = (erfc(alpha * distance) - erfc(g * distance)) / distance
        out += np.where(home, 2 / sqrt(pi) * (g - alpha), term)
    for k in helpers.shifts(2 * pi * np.linalg.inv(cell).T, 12.4 * alpha):
        if k.any():
            out += 4 * pi / volume * np.exp(-k @ k / (4 * alpha**2)) / (k @ k) * np.cos(d @ k)
    return COULOMB_CONSTANT * out


# --- the pair function


@pytest.mark.parametrize("x", [0.0, 1e-6, 5e-3, 0.00999, 0.01001, 0.1, 1.0])
def test_screened_by_its_series(x: float) -> None:
    """erf(x)/x = 2/sqrt(pi) sum (-1)^k x^2k / (k! (2k + 1)), on both sides of the branch at x = 0.01."""
    g, k = 0.7, np.arange(40)
    terms = 2 / sqrt(pi) * (-1.0) ** k * g / (factorial(k) * (2 * k + 1))
    value, slope = screened(g, x / g)
    assert value == pytest.approx((terms * x ** (2.0 * k)).sum(), rel=1e-14)  # rounding
    # the closed form of the slope loses x^2 of its digits: 1e-16 / 1e-4, and some roundings
    assert slope == pytest.approx(g**2 * (terms[1:] * 2 * k[1:] * x ** (2.0 * k[1:] - 2)).sum(), rel=1e-11)


def test_wide_and_narrow() -> None:
    assert exponent(0.6, 0.8) == pytest.approx(1 / sqrt(2.0), rel=1e-15)  # 0.36 + 0.64 = 1
    assert screened(exponent(0.3, 0.3), 50.0)[0] == pytest.approx(1 / 50.0, rel=1e-15)


# --- open boundaries


def test_direct_matrix() -> None:
    r, width, _ = gaussians(CELLS["triclinic"], 6, seed=1)
    eta = np.arange(6.0)
    wanted = np.empty((6, 6))
    for i, j in product(range(6), repeat=2):
        distance, spread = np.linalg.norm(r[i] - r[j]), sqrt(2 * (width[i] ** 2 + width[j] ** 2))
        wanted[i, j] = COULOMB_CONSTANT * erf(distance / spread) / distance if i != j else 0.0
        if i == j:
            wanted[i, i] = eta[i] + COULOMB_CONSTANT / (sqrt(pi) * width[i])
    np.testing.assert_allclose(DirectCoulomb(r, width, eta).matrix(), wanted, rtol=1e-13)  # rounding


def test_self_term_is_the_limit_of_a_pair() -> None:
    """Two equal Gaussians on top of each other interact as one with itself."""
    matrix = DirectCoulomb(np.array([[0.0, 0, 0], [0, 0, 1e-9]]), np.array([0.9, 0.9]), np.zeros(2)).matrix()
    assert matrix[0, 1] == pytest.approx(matrix[0, 0], rel=1e-14)  # (g r)^2 / 3 is far below rounding


@pytest.mark.parametrize("seed", range(4))
def test_positive_definite_without_hardness(seed: int) -> None:
    r, width, _ = gaussians(4.0 * np.eye(3), 12, seed, narrow=0.3, wide=1.2)
    assert np.linalg.eigvalsh(DirectCoulomb(r, width, np.zeros(12)).matrix()).min() > 0


def water_hexamer(folder: Path) -> tuple[Any, DirectCoulomb]:
    atoms = read(folder / "golden_qpac_A_matrix" / "w6.xyz")
    return atoms, DirectCoulomb(atoms.positions, covalent_radii[atoms.numbers], np.zeros(len(atoms)))


def test_matrix_of_qpac(reference_data: Path) -> None:
    """The matrix that q-pac prints for a water hexamer (widths: covalent radii, no hardness)."""
    wanted = np.loadtxt(reference_data / "golden_qpac_A_matrix" / "w6_A_eV.csv", delimiter=",")
    # printed with 8 digits, and with older constants: 2.3e-7 eV
    np.testing.assert_allclose(water_hexamer(reference_data)[1].matrix(), wanted, atol=1e-6)


def test_diagonal_of_qpac() -> None:
    """q-pac's diagonal for O and H (covalent radii 0.66 and 0.31 A), commit 363374d1 of VondrakMar/QEqML."""
    matrix = DirectCoulomb(np.array([[0.0, 0, 0], [0, 0, 1]]), np.array([0.66, 0.31]), np.zeros(2)).matrix()
    np.testing.assert_allclose(np.diag(matrix), [12.30928775, 26.20687069], atol=1e-6)  # as above


# --- periodic boundaries


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_against_an_independent_ewald_sum(name: str, n: int, helpers: Any) -> None:
    """The whole matrix, so charged cells and their background too; other splitting, other form."""
    cell = CELLS[name]
    r, width, _ = gaussians(cell, n, seed=n, wide=1.5)
    eta = np.arange(n, dtype=float)
    ewald = EwaldCoulomb(r, cell, width, eta, accuracy=1e-12)
    reference = np.diag(eta) + reference_matrix(r, cell, width, 1.3 * ewald.splitting, helpers)
    # truncation 1e-12; the sums cancel to 1e-13 of terms of 50 eV at most
    np.testing.assert_allclose(ewald.matrix(), reference, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_mesh_against_an_independent_ewald_sum(name: str, helpers: Any) -> None:
    """The whole matrix of the operator that simulations use; charged cells too."""
    n, cell, s, eta = 6, CELLS[name], np.array([0.4, 1.0]), np.array([2.0, 3.0])
    r, _, _ = gaussians(cell, n, seed=10 + n)
    species = np.arange(n) % 2
    structure, neighbours = Structure(np.full(n, 11), r, cell=cell, pbc=True), NeighbourList()
    electrostatics = Electrostatics(s, eta, accuracy=1e-10)
    neighbours.update(structure, electrostatics.cutoff(structure))
    operator = electrostatics.at(structure, species, neighbours)
    matrix = np.array([operator.apply(unit) for unit in np.eye(n)])
    reference = np.diag(eta[species]) + reference_matrix(r, cell, s[species], 0.5, helpers)
    # ten times the accuracy: a potential, where a coarse mesh in a small cell errs for all atoms alike
    np.testing.assert_allclose(matrix, reference, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("sites", "numbers", "nearest", "madelung"),
    [
        ("rock salt", [1.0] * 4 + [-1.0] * 4, 0.5, 1.747564594633),
        ("caesium chloride", [1.0, -1.0], sqrt(3) / 2, 1.762674773),
    ],
)
@pytest.mark.parametrize("width", [0.2, 0.35])
def test_madelung_constants(sites: str, numbers: list[float], nearest: float, madelung: float, width: float) -> None:
    """-M kC / d per ion pair; the constants are OEIS A085469 (rock salt) and A181152 (caesium chloride)."""
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    fractions = {
        "rock salt": np.concatenate([base, base + np.array([0.5, 0, 0])]),
        "caesium chloride": np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
    }[sites]
    a, q = 5.6, np.array(numbers)
    ewald = EwaldCoulomb(a * fractions, a * np.eye(3), np.full(len(q), width), np.zeros(len(q)), accuracy=1e-12)
    self_energy = COULOMB_CONSTANT / (2 * sqrt(pi) * width)  # per charge; neighbours are beyond the reach of erfc
    energy = 0.5 * q @ ewald.matrix() @ q - len(q) * self_energy
    # ten digits of the constants; erfc(2.8 / 2 / 0.35) = 1.5e-8 in the wide case, with six neighbours of 1/d
    rel = 1e-9 if width < 0.3 else 1e-7
    assert energy / (len(q) / 2) == pytest.approx(-madelung * COULOMB_CONSTANT / (nearest * a), rel=rel)


def test_wigner_lattice() -> None:
    """A charged cubic cell with a uniform background: -2.837297479480619 / a, the background's extent included.

    Constant: Leslie and Gillan, J. Phys. C 18, 973 (1985), doi:10.1088/0022-3719/18/5/005, to more digits.
    """
    a, s = 4.0, 0.3
    matrix = EwaldCoulomb(np.zeros((1, 3)), a * np.eye(3), np.array([s]), np.zeros(1), accuracy=1e-12).matrix()
    wanted = 1 / (sqrt(pi) * s) - 2.837297479480619 / a + 4 * pi * s**2 / a**3
    assert matrix[0, 0] / COULOMB_CONSTANT == pytest.approx(wanted, rel=1e-12)  # erfc(4 / 0.6) = 4e-21: rounding


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("narrow", "wide"), [(0.3, 0.3), (0.3, 2.0), (2.0, 2.0)])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-8])
def test_accuracy_is_the_rms_force_error(name: str, narrow: float, wide: float, accuracy: float) -> None:
    """Over 24 random sets of charges of rms 1 e.

    The error estimate averages over wave vectors as if they were dense; in a cubic cell of 8 Angstrom they come in
    shells, and the rms is up to 1.1 times the estimate where one lies just outside of the cutoff.
    """
    errors, n = [], 8
    for seed in range(24):
        r, width, q = gaussians(CELLS[name], n, seed, narrow, wide)
        rough, fine = (EwaldCoulomb(r, CELLS[name], width, np.zeros(n), a).gradient(q)[0] for a in (accuracy, 1e-12))
        errors.append(((rough - fine) ** 2).sum(axis=1).mean())
    assert np.sqrt(np.mean(errors)) < 1.2 * accuracy


@pytest.mark.parametrize("name", ["cubic", "triclinic"])
def test_supercell(name: str) -> None:
    """A cell and its 2 x 1 x 3 repetition: potentials of a periodic set of charges agree, charged ones too."""
    cell = CELLS[name]
    r, width, q = gaussians(cell, 4, seed=3, wide=1.5)
    offsets = np.array(list(product(range(2), range(1), range(3)))) @ cell
    many = np.concatenate([r + offset for offset in offsets])
    small = EwaldCoulomb(r, cell, width, np.ones(4), 1e-12).matrix() @ q
    large = EwaldCoulomb(many, np.diag([2, 1, 3]) @ cell, np.tile(width, 6), np.ones(24), 1e-12).matrix() @ np.tile(
        q, 6
    )
    np.testing.assert_allclose(large, np.tile(small, 6), atol=1e-10)  # truncation 1e-12, rounding of 24 terms


def test_wrapping_does_not_matter() -> None:
    cell = CELLS["triclinic"]
    r, width, _ = gaussians(cell, 4, seed=3)
    moved = r + np.array([[3, 0, 0], [0, -2, 1], [0, 0, 0], [-7, 5, 4]]) @ cell
    first, second = (EwaldCoulomb(x, cell, width, np.zeros(4), 1e-9).matrix() for x in (r, moved))
    np.testing.assert_allclose(first, second, atol=1e-12)  # coordinates of 100 Angstrom round to 1e-14


@pytest.mark.parametrize(("edge", "width", "accuracy"), [(2.5, 2.0, 1e-5), (2.0, 1.1, 1e-3), (1.2, 1.0, 1e-6)])
def test_cell_without_a_wave_vector_in_reach(edge: float, width: float, accuracy: float, helpers: Any) -> None:
    """Wide charges in a tiny cell: all reciprocal vectors are longer than the cutoff that the accuracy asks for."""
    r, cell, widths = np.zeros((1, 3)), edge * np.eye(3), np.array([width])
    ewald = EwaldCoulomb(r, cell, widths, np.zeros(1), accuracy)
    wanted = reference_matrix(r, cell, widths, 2.0 / edge, helpers)
    np.testing.assert_allclose(
        ewald.matrix(), wanted, atol=100 * accuracy
    )  # an energy, where forces vanish by symmetry
    assert not ewald.gradient(np.ones(1))[0].any()


def test_half_space() -> None:
    cell, cutoff = CELLS["triclinic"], 3.0
    k = half_space_wave_vectors(cell, cutoff)
    integers = np.array(list(product(range(-12, 13), repeat=3)))
    everything = 2 * pi * integers @ np.linalg.inv(cell).T
    lengths = np.linalg.norm(everything, axis=1)
    assert 2 * len(k) == np.count_nonzero((lengths <= cutoff) & (lengths > 0))
    both = np.concatenate([k, -k])
    assert len(np.unique(np.round(both, 9), axis=0)) == len(both)  # no vector is there together with its opposite


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("boundary", ["open", "cubic", "triclinic"])
def test_gradient(boundary: str, charge: float, helpers: Any) -> None:
    r, width, q = gaussians(CELLS["triclinic"], 5, seed=6, wide=1.5)
    q += charge / 5 - q.mean()

    def operator(deform: np.ndarray, positions: np.ndarray = r) -> Any:
        if boundary == "open":
            return DirectCoulomb(positions @ deform, width, np.zeros(5))
        return EwaldCoulomb(positions @ deform, CELLS[boundary] @ deform, width, np.zeros(5), 1e-11)

    def energy(deform: np.ndarray, positions: np.ndarray = r) -> float:
        return float(0.5 * q @ operator(deform, positions).matrix() @ q)

    grad_r, grad_strain = operator(np.eye(3)).gradient(q)
    by_position = helpers.five_point(lambda x: energy(np.eye(3), x), r, 5e-3)
    by_strain = helpers.five_point(energy, np.eye(3), 1e-3)  # r -> r (1 + strain), the transpose of (1 + strain) r
    # 5e-3^4 f^(5) / 30 with f^(5) of 14 * 0.3^-6 at most; truncation 1e-11 / 5e-3
    np.testing.assert_allclose(grad_r, by_position, atol=3e-8 * np.abs(grad_r).max())
    np.testing.assert_allclose(grad_strain, by_strain.T, atol=3e-8 * np.abs(grad_strain).max())
