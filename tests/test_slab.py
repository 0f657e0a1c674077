"""Slabs: against an exact sum over two periodic vectors, closed formulas, finite differences, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import pi, sqrt
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from scipy.special import erf, erfc, erfcx

from kqeq_md.ase import KQEq, structure_from_atoms
from kqeq_md.charges.charge_model import Hold
from kqeq_md.charges.constraints import total_charge
from kqeq_md.charges.field import effective_field, field_gradient, has_dipole
from kqeq_md.electrostatics.ewald import EwaldCoulomb
from kqeq_md.electrostatics.lattice import greedy_reduction, reduced_cell
from kqeq_md.electrostatics.slab import (
    image_error,
    needed_vacuum,
    padded_length,
    slab_field,
    slab_matrix,
    slab_potential,
    slab_strain,
)
from kqeq_md.errors import ChargeError, FieldError, StructureError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Result, Structure, plane
from kqeq_md.units import COULOMB_CONSTANT

SLAB = (True, True, False)
LATERAL = {
    "square": np.array([[9.0, 0, 0], [0, 9.0, 0]]),
    "skewed": np.array([[7.0, 0, 0], [25.0, 8.0, 0]]),
    "narrow": np.array([[4.0, 0, 0], [0, 22.0, 0]]),
    "tiny": np.array([[3.0, 0, 0], [1.5, 2.6, 0]]),
}


def along(lateral: np.ndarray, axis: int) -> np.ndarray:
    """A cell with the plane of `lateral` turned so that its normal is the Cartesian and lattice vector `axis`."""
    cell = np.zeros((3, 3))
    cell[[(axis + 1) % 3, (axis + 2) % 3]] = np.roll(lateral, axis + 1, axis=1)
    return cell


def slab(
    lateral: np.ndarray, axis: int = 2, n: int = 6, thickness: float = 6.0, seed: int = 0, wide: float = 2.0
) -> tuple[np.ndarray, ...]:
    """Random positions, cell, widths and charges of rms 1 e."""
    rng = np.random.default_rng(seed)
    cell, charges = along(lateral, axis), rng.normal(size=n)
    r = rng.random((n, 3)) @ cell
    r[:, axis] += thickness * (rng.random(n) - 0.5)
    return r, cell, rng.uniform(0.3, wide, n), charges / np.sqrt(np.mean(charges**2))


def plane_vectors(lateral: np.ndarray, reach: float) -> Iterator[np.ndarray]:
    """All lattice vectors in the plane within `reach` of the origin, and more."""
    heights = np.linalg.norm(np.cross(*lateral)) / np.linalg.norm(lateral, axis=1)[::-1]
    bounds = (np.ceil(reach / heights) + 1).astype(int)
    for integers in product(*(range(-b, b + 1) for b in bounds)):
        yield np.array(integers) @ lateral


def exact_matrix(r: np.ndarray, cell: np.ndarray, axis: int, width: np.ndarray, alpha: float = 0.3) -> np.ndarray:
    """J without hardness by the two-dimensional Ewald sum, until terms are below 1e-16.

    Reference: Parry, Surf. Sci. 49, 433 (1975), doi:10.1016/0039-6028(75)90362-3; here with Gaussian charges.
    """
    lateral, normal = plane(cell, axis)
    area, g = np.linalg.norm(np.cross(*lateral)), 1 / np.sqrt(2 * (width[:, None] ** 2 + width**2))
    d = r[:, None] - r
    z = d @ normal
    flat = d - z[..., None] * normal
    out = -2 * sqrt(pi) / area * (np.exp(-((alpha * z) ** 2)) / alpha + sqrt(pi) * z * erf(alpha * z))
    for shift in plane_vectors(lateral, 6.2 / min(alpha, g.min()) + np.linalg.norm(flat, axis=2).max()):
        distance = np.linalg.norm(d + shift, axis=2)
        home = distance < 1e-9
        distance[home] = 1.0
        term = (erfc(alpha * distance) - erfc(g * distance)) / distance
        out += np.where(home, 2 / sqrt(pi) * (g - alpha), term)
    for wave in plane_vectors(2 * pi * np.linalg.pinv(lateral).T, 12.4 * alpha):
        k = np.linalg.norm(wave)
        if k > 0:
            decay = np.exp(-((k / (2 * alpha)) ** 2) - (alpha * z) ** 2)
            both = erfcx(k / (2 * alpha) + alpha * z) + erfcx(k / (2 * alpha) - alpha * z)
            out += pi / (area * k) * np.cos(flat @ wave) * decay * both
    return COULOMB_CONSTANT * out


def ewald(r: np.ndarray, cell: np.ndarray, axis: int, width: np.ndarray, accuracy: float = 1e-11) -> EwaldCoulomb:
    return EwaldCoulomb(r, cell, width, np.zeros(len(r)), accuracy, open_axis=axis)


def close(got: Any, wanted: Any, atol: float) -> None:
    """Within `atol`; the relative tolerance that NumPy adds unasked would be far above it."""
    np.testing.assert_allclose(got, wanted, rtol=0.0, atol=atol)


# --- the exact sum itself


@pytest.mark.parametrize("name", LATERAL)
def test_exact_sum_does_not_depend_on_its_splitting(name: str) -> None:
    r, cell, width, _ = slab(LATERAL[name])
    first, second = (exact_matrix(r, cell, 2, width, alpha) for alpha in (0.25, 0.4))
    close(first, second, atol=1e-11)  # rounding of terms of 1e3 eV


def test_exact_sum_is_the_sum_over_pairs() -> None:
    """A neutral column 1, -2, 1 without dipole: the plain sum over a disc of its images converges like 1 / R^3."""
    lateral, height, reach, width = np.array([[4.0, 0, 0], [1.0, 5.0, 0]]), 0.9, 300.0, 0.7
    q, r = np.array([1.0, -2.0, 1.0]), height * np.array([[0, 0, -1.0], [0, 0, 0], [0, 0, 1.0]])
    shifts = np.array([s for s in plane_vectors(lateral, reach) if 0 < np.linalg.norm(s) < reach])
    distance = np.linalg.norm(shifts[:, None, None] + r[:, None] - r, axis=3)
    home = np.abs(r[:, None, 2] - r[:, 2])
    inside = erf(home / (2 * width)) / np.where(home > 0, home, 1) + np.eye(3) / (sqrt(pi) * width)
    direct = COULOMB_CONSTANT * (inside + (erf(distance / (2 * width)) / distance).sum(axis=0))
    exact = exact_matrix(r, np.vstack([lateral, np.zeros(3)]), 2, np.full(3, width))
    # the rest is 2 pi kC 9 h^4 / (3 A R^3) for quadrupoles 2 h^2 side by side: 3.3e-7 eV; the ragged rim as much again
    assert 0.5 * q @ exact @ q == pytest.approx(0.5 * q @ direct @ q, abs=1e-6)


@pytest.mark.parametrize("distance", [1.0, 5.0, 30.0])
def test_capacitor(distance: float) -> None:
    """Gaussians wider than the cell make uniform sheets: the field between them is 4 pi kC q / A."""
    edge, s = 2.0, 2.0
    cell, width = np.diag([edge, edge, 0.0]), np.full(2, s)
    r = np.array([[0.3, 0.4, 0.0], [1.1, 0.2, distance]])
    spread = sqrt(2) * s  # of both Gaussians together
    mean = spread * sqrt(2 / pi) * np.exp(-((distance / spread) ** 2) / 2) + distance * erf(distance / spread / sqrt(2))
    wanted = 2 * pi * COULOMB_CONSTANT / edge**2 * (mean - spread * sqrt(2 / pi))
    q = np.array([1.0, -1.0])
    for matrix in (exact_matrix(r, cell, 2, width), ewald(r, cell, 2, width).matrix()):
        # waves in the plane: exp(-(2 pi s / 2)^2) = 7e-18; rounding of a few 100 eV
        assert 0.5 * q @ matrix @ q == pytest.approx(wanted, abs=1e-10)


# --- the slab term


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [0.0, 6.0, 20.0])
@pytest.mark.parametrize("name", LATERAL)
def test_matrix_against_the_exact_sum(name: str, thickness: float, axis: int) -> None:
    """Every element, so any total charge; widths from 0.3 to 2 Angstrom, vacuum as the accuracy asks for."""
    r, cell, width, _ = slab(LATERAL[name], axis, thickness=thickness, seed=axis)
    matrix = ewald(r, cell, axis, width).matrix()
    # images across the vacuum 1e-14, truncation 1e-11; terms of 1e3 eV (L of 200 Angstrom) round to 1e-12
    close(matrix, exact_matrix(r, cell, axis, width), atol=1e-9)


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_default_vacuum_costs_less_than_the_promise(seed: int, charge: float, accuracy: float) -> None:
    """Energies with the vacuum of a loose accuracy: 1e-7 eV off the exact sum, whatever the total charge."""
    rng = np.random.default_rng(seed)
    lateral = np.array([[rng.uniform(4, 12), 0, 0], [rng.uniform(-20, 20), rng.uniform(4, 12), 0]])
    r, cell, width, q = slab(lateral, thickness=rng.uniform(0, 20), seed=seed)
    q += charge / len(q) - q.mean()
    loose = padded_length(r[:, 2], lateral, width.max(), accuracy, real_cutoff=0.0)
    fine = EwaldCoulomb(r, np.vstack([lateral, [0, 0, loose]]), width, np.zeros(len(q)), 1e-11).matrix()
    padded = fine + slab_matrix(r[:, 2], width, loose, lateral[0, 0] * lateral[1, 1])
    exact = exact_matrix(r, cell, 2, width)
    assert np.abs(padded - exact).max() < 1.1e-8  # the bound on an element, and truncation of 1e-9
    assert 0.5 * q @ padded @ q == pytest.approx(0.5 * q @ exact @ q, abs=1e-7)  # the promise


@pytest.mark.parametrize("name", LATERAL)
@pytest.mark.parametrize("widest", [0.3, 2.0])
@pytest.mark.parametrize("vacuum", [4.0, 8.0, 12.0])
def test_image_error_bounds_the_error(vacuum: float, widest: float, name: str) -> None:
    """Two charges of which one faces its image right across the vacuum; in a narrow cell the bound is nearly it."""
    lateral = greedy_reduction(LATERAL[name])
    area = float(np.linalg.norm(np.cross(*lateral)))
    r, width = np.array([[0.0, 0, 0], [0, 0, 3.0]]), np.full(2, widest)
    padded = EwaldCoulomb(r, np.vstack([lateral, [0, 0, 3.0 + vacuum]]), width, np.zeros(2), 1e-12).matrix()
    padded += slab_matrix(r[:, 2], width, 3.0 + vacuum, area)
    error = np.abs(padded - exact_matrix(r, np.vstack([lateral, np.zeros(3)]), 2, width)).max()
    bound = image_error(lateral, widest, vacuum)
    assert error < bound + 1e-10  # truncation 1e-12, rounding of 1e2 eV
    if widest == 0.3:
        # two sides instead of one, and the thickness of 3 Angstrom lets the second image in
        assert error > 0.3 * bound - 1e-10


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neither_height_nor_open_vector_matter(axis: int) -> None:
    r, cell, width, q = slab(LATERAL["skewed"], axis, seed=3)
    first = ewald(r, cell, axis, width)
    normal = plane(cell, axis)[1]
    cell[axis] = -7.0 * normal
    moved = ewald(r + 1234.5 * normal, cell, axis, width)
    # 1e3 Angstrom round to 1e-13, times forces of 1e2 eV/Angstrom
    close(moved.matrix(), first.matrix(), atol=1e-10)
    for got, wanted in zip(moved.gradient(q), first.gradient(q), strict=True):
        close(got, wanted, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_turned_slab(seed: int, helpers: Any) -> None:
    r, cell, width, q = slab(LATERAL["skewed"], seed=seed)
    turn = helpers.random_rotation(seed)
    straight, turned = ewald(r, cell, 2, width), ewald(r @ turn, cell @ turn, 2, width)
    close(turned.matrix(), straight.matrix(), atol=1e-10)  # rounding of terms of 1e3 eV
    close(turned.gradient(q)[0], straight.gradient(q)[0] @ turn, atol=1e-10)
    close(turned.gradient(q)[1], turn.T @ straight.gradient(q)[1] @ turn, atol=1e-10)


def test_moments_are_the_matrix() -> None:
    r, _, width, q = slab(LATERAL["skewed"], n=9, seed=5)
    z, length, area = r[:, 2] + 500.0, 61.0, 56.0
    matrix = slab_matrix(z, width, length, area)
    # nine terms of 1e2 eV, rounded; heights about 500 Angstrom cost three digits in the matrix
    close(slab_potential(z, width, q, length, area), matrix @ q, atol=1e-10)


def test_a_far_origin_costs_no_digits() -> None:
    """Heights that a float holds exactly, also a million Angstrom up: squares would lose them."""
    rng = np.random.default_rng(4)
    z, width, q = rng.integers(-640, 640, 8) / 64.0, rng.uniform(0.3, 2.0, 8), rng.normal(size=8)
    for function in (slab_potential, slab_field):
        here, there = (function(heights, width, q, 50.0, 56.0) for heights in (z, z + 2.0**20))
        np.testing.assert_array_equal(there, here)
    grad_r, normal = np.outer(q - q.mean(), [0.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0])
    here, there = (
        slab_strain(np.zeros((3, 3)), 0.0, grad_r, heights[:, None] * normal, normal) for heights in (z, z + 2.0**20)
    )
    np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_field_of_the_slab_term(charge: float, helpers: Any) -> None:
    r, _, width, q = slab(LATERAL["skewed"], seed=7)
    q += charge / len(q) - q.mean()
    got = -q * slab_field(r[:, 2], width, q, 50.0, 56.0)
    wanted = helpers.five_point(lambda z: 0.5 * q @ slab_matrix(z, width, 50.0, 56.0) @ q, r[:, 2], 0.1)
    # a quadratic function: rounding of 1e2 eV by a step of 0.1
    close(got, wanted, atol=1e-12)
    assert got.sum() == pytest.approx(0.0, abs=1e-13)  # rounding


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("case", ["x", "y", "z", "turned"])
def test_forces_and_virial(case: str, charge: float, helpers: Any) -> None:
    """By differences of the exact sum; strained planes turn and stretch, all nine components at once."""
    axis = {"x": 0, "y": 1}.get(case, 2)
    r, cell, width, q = slab(LATERAL["skewed"], axis, n=4, seed=8, wide=1.5)
    if case == "turned":
        turn = helpers.random_rotation(4)
        r, cell = r @ turn, cell @ turn
    q += charge / len(q) - q.mean()

    def energy(deform: np.ndarray, positions: np.ndarray = r) -> float:
        return float(0.5 * q @ exact_matrix(positions @ deform, cell @ deform, axis, width) @ q)

    grad_r, grad_strain = ewald(r, cell, axis, width).gradient(q)
    by_position = helpers.five_point(lambda x: energy(np.eye(3), x), r, 5e-3)
    by_strain = helpers.five_point(energy, np.eye(3), 1e-3)
    # as in the other boundaries: 5e-3^4 f^(5) / 30 with f^(5) of 14 * 0.3^-6 at most; truncation 1e-11 / 5e-3
    close(grad_r, by_position, atol=1e-7 * np.abs(grad_r).max())
    # strains move atoms by at most 30 Angstrom * 1e-3, of the order of the steps above
    close(grad_strain, 0.5 * (by_strain + by_strain.T), atol=1e-7 * np.abs(grad_strain).max())
    close(by_strain, by_strain.T, atol=1e-7 * np.abs(grad_strain).max())
    close(grad_r.sum(axis=0), 0.0, atol=1e-9)  # images across the vacuum, truncation


@pytest.mark.parametrize("thickness", [0.0, 10.0])
@pytest.mark.parametrize(("narrow", "wide"), [(0.3, 0.3), (0.3, 2.0), (2.0, 2.0)])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-8])
def test_accuracy_is_the_rms_force_error(accuracy: float, narrow: float, wide: float, thickness: float) -> None:
    """Over 24 random sets of charges of rms 1 e, also where they are far denser than in the padded cell."""
    errors = []
    for seed in range(24):
        r, cell, _, q = slab(LATERAL["square"], n=8, thickness=thickness, seed=seed)
        width = np.random.default_rng(seed).uniform(narrow, wide, 8)
        rough, fine = (ewald(r, cell, 2, width, a).gradient(q)[0] for a in (accuracy, 1e-12))
        errors.append(((rough - fine) ** 2).sum(axis=1).mean())
    assert np.sqrt(np.mean(errors)) < 1.2 * accuracy  # the estimate itself, as for periodic cells


# --- vacuum


def test_vacuum_too_small_is_refused() -> None:
    z, lateral = np.array([0.0, 5.0]), LATERAL["square"]
    needed = needed_vacuum(lateral, 1.0, 1e-5, real_cutoff=0.0)
    message = rf"`vacuum` must be at least {needed:.4g} Angstrom, got 10$"
    with pytest.raises(ChargeError, match=message):
        padded_length(z, lateral, 1.0, 1e-5, real_cutoff=0.0, vacuum=10.0)
    with pytest.raises(ChargeError, match="`vacuum` must be at least"):
        padded_length(z, lateral, 1.0, 1e-5, real_cutoff=0.0, vacuum=float("nan"))
    generous = padded_length(z, lateral, 1.0, 1e-5, real_cutoff=0.0, vacuum=2.0 * needed)
    assert 5.0 + 2.0 * needed <= generous <= 1.02 * (5.0 + 2.0 * needed)  # one rung


@pytest.mark.parametrize("edge", [2.0, 9.0, 200.0])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-9])
def test_vacuum_is_as_short_as_the_bound_allows(edge: float, accuracy: float) -> None:
    lateral, bound = edge * np.eye(3)[:2], min(1e-8, 1e-3 * accuracy)
    needed = needed_vacuum(lateral, 0.5, accuracy, real_cutoff=0.0)
    assert image_error(lateral, 0.5, needed) <= bound
    assert image_error(lateral, 0.5, 0.98 * needed) > bound  # found to 1 %


def test_vacuum_covers_the_pair_cutoff() -> None:
    assert needed_vacuum(LATERAL["tiny"], 0.5, 1e-5, real_cutoff=40.0) == 40.0


def test_skewed_plane_needs_the_vacuum_of_its_reduced_form() -> None:
    skewed = np.array([[1, 0], [7, 1]]) @ LATERAL["square"]
    lengths = [needed_vacuum(lateral, 1.0, 1e-5, real_cutoff=0.0) for lateral in (skewed, LATERAL["square"])]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-9)  # rounding of the reduction


def test_padded_cell_is_reduced() -> None:
    r, cell, width, _ = slab(LATERAL["skewed"])
    lattice = ewald(r, cell, 2, width).lattice
    assert np.linalg.norm(lattice[:2], axis=1).max() < 9.0  # 25 - 4 * 7 = -3: sqrt(3^2 + 8^2) = 8.5
    close(lattice[2, :2], np.zeros(2), atol=1e-14)  # rounding of 60 Angstrom
    assert lattice[2, 2] > 6.0


def test_length_rarely_changes() -> None:
    """A slab that grows by a tenth passes five or six lengths."""
    lengths = {
        padded_length(np.array([0.0, top]), LATERAL["square"], 1.0, 1e-5, real_cutoff=0.0)
        for top in np.linspace(20.0, 26.0, 200)
    }
    assert 4 <= len(lengths) <= 8


# --- reduced lattices


@pytest.mark.parametrize("seed", range(20))
def test_reduction_finds_the_shortest_vectors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(3, 3)) * rng.uniform(1, 20, (3, 1))
    mixing = np.eye(3)
    for i, j in [(0, 1), (1, 2), (2, 0), (1, 0), (0, 2)]:
        mixing[i] += rng.integers(-4, 5) * mixing[j]
    reduced = reduced_cell(mixing @ start)
    integers = reduced @ np.linalg.inv(start)
    close(integers, np.rint(integers), atol=1e-9)  # rounding of entries of 1e3
    assert abs(np.linalg.det(np.rint(integers))) == pytest.approx(1.0, rel=1e-12)  # the same lattice
    # Minkowski: no vector gets shorter by adding smaller multiples of the others
    lengths = np.linalg.norm(reduced, axis=1)
    for k in product(range(-2, 3), repeat=3):
        last = max((i for i in range(3) if k[i]), default=None)
        if last is not None and abs(k[last]) == 1:
            assert np.linalg.norm(np.array(k) @ reduced) > (1 - 1e-9) * lengths[last]  # rounding
    assert np.prod(lengths) <= sqrt(2) * abs(np.linalg.det(start)) * (1 + 1e-9)  # Hermite's constant; rounding


def test_reduction_looks_at_every_corner() -> None:
    """Rounded coefficients alone would stop at (0, 3, -1)."""
    reduced = reduced_cell(np.array([[0.0, 5, 1], [-2, -1, 0], [-2, 1, 2]]))
    close(np.linalg.norm(reduced, axis=1), np.sqrt([5.0, 8.0, 9.0]), atol=1e-14)  # rounding


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_reduction_of_a_slab_leaves_the_open_vector(axis: int) -> None:
    cell = along(LATERAL["skewed"], axis)
    cell[axis, axis] = 1.0
    reduced = reduced_cell(cell, [i != axis for i in range(3)])
    np.testing.assert_array_equal(reduced[axis], cell[axis])
    assert np.linalg.det(reduced) == pytest.approx(np.linalg.det(cell), rel=1e-12) or np.linalg.det(reduced) < 0
    assert np.linalg.norm(reduced, axis=1).max() < 9.0  # 25 - 4 * 7 = -3: sqrt(3^2 + 8^2) = 8.5


def test_very_skewed_cell_is_its_lattice() -> None:
    rng = np.random.default_rng(2)
    straight = np.diag([5.0, 6.0, 7.0])
    skewed = np.array([[1, 0, 0], [60, 1, 0], [-45, 80, 1]]) @ straight
    r, width = rng.random((4, 3)) @ straight, rng.uniform(0.3, 1.5, 4)
    first, second = (EwaldCoulomb(r, cell, width, np.zeros(4), 1e-9).matrix() for cell in (straight, skewed))
    close(first, second, atol=1e-10)  # entries of 1e3 Angstrom round to 1e-13


@pytest.mark.parametrize(("edge", "width"), [(3.0, 1e4), (1e-3, 1.0)])
def test_absurd_sums_are_refused(edge: float, width: float) -> None:
    with pytest.raises(StructureError, match="`cell` must need at most 1e\\+07 lattice vectors"):
        EwaldCoulomb(np.zeros((1, 3)), edge * np.eye(3), np.array([width]), np.zeros(1), 1e-5).matrix()


# --- structures and fields


def test_slab_structure() -> None:
    r, cell, _, _ = slab(LATERAL["skewed"], axis=1, n=2)
    structure = Structure([11, 17], r, cell=cell, pbc=(True, False, True))
    assert (structure.boundary, structure.open_axis, structure.periodic) == ("slab", 1, False)
    close(structure.normal, [0, 1, 0], atol=1e-15)
    close(structure.cell[1], [0, 1, 0], atol=1e-15)  # filled in
    assert np.linalg.det(structure.cell) > 0


FREE = Hold(total_charge(2, 0.0))
"""Charges of two atoms that flow freely."""


def field_along(direction: Any) -> Structure:
    positions = np.array([[0.0, 1, 2], [3, 4, 6]])
    return Structure([11, 17], positions, cell=np.diag([9, 8, 0]), pbc=SLAB, field=direction)


def test_field_along_the_normal() -> None:
    structure = field_along([0, 0, -0.3])
    close(effective_field(structure, FREE), np.array([0.0, 0.0, -0.3]), atol=1e-15)  # rounding
    assert not has_dipole(structure, FREE)
    q = np.array([2.0, -1.0])
    grad_r, grad_strain = field_gradient(structure, FREE, q, q @ structure.positions)
    close(grad_r, [[0, 0, 0.6], [0, 0, -0.3]], atol=1e-15)
    close(grad_strain, np.diag([0, 0, -0.6]), atol=1e-15)  # 0.3 (2 * 2 - 6); rounding


@pytest.mark.parametrize("direction", [(0.1, 0, 0), (0, 0.1, 0.1), (1e-6, 0, 0.1)])
def test_field_in_the_plane_is_refused(direction: tuple[float, ...]) -> None:
    with pytest.raises(FieldError, match="`field` must be zero along periodic axes"):
        effective_field(field_along(direction), FREE)


def test_field_along_a_turned_normal_passes(helpers: Any) -> None:
    """Rounding of the normal is no field in the plane."""
    turn = helpers.random_rotation(6)
    for size in (1e-8, 0.1, 1e3):
        structure = Structure([11], [[0, 0, 0]], cell=np.diag([9, 8, 0]) @ turn, pbc=SLAB, field=size * turn[2])
        field = effective_field(structure, Hold(total_charge(1, 0.0)))
        np.testing.assert_allclose(field, size * turn[2], rtol=1e-12)


def test_field_gradient_of_open_structures(helpers: Any) -> None:
    structure, q = helpers.cluster(field=[0.1, -0.2, 0.3]), np.arange(8.0)

    hold = Hold(total_charge(8, 0.0))

    def energy(deform: np.ndarray) -> float:
        now = helpers.strained(structure, deform)
        return -float(effective_field(now, hold) @ (q @ now.positions))

    grad_r, grad_strain = field_gradient(structure, hold, q, q @ structure.positions)
    close(grad_r, -np.outer(q, structure.field), atol=1e-15)  # rounding
    wanted = helpers.five_point(energy, np.eye(3), 0.1)  # linear: rounding
    close(grad_strain, wanted.T, atol=1e-12)


# --- ASE


def fake_compute(self: Potential, structure: Structure, *args: Any, **kwargs: Any) -> Result:
    n = len(structure)
    virial = np.diag([1.0, 2.0, 3.0])
    return Result(0.0, np.zeros(n), energies=np.zeros(n), forces=np.zeros((n, 3)), virial=virial)


def test_stress_of_a_slab_refers_to_the_given_cell(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Potential, "compute", fake_compute)
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 3]], cell=[5, 4, 10], pbc=SLAB, calculator=KQEq(model))
    np.testing.assert_allclose(atoms.get_stress(), [-1 / 200, -2 / 200, -3 / 200, 0, 0, 0], rtol=1e-14)
    with pytest.raises(PropertyNotImplementedError, match="`dipole` is not defined where charge flows freely"):
        atoms.get_dipole_moment()
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 3]], cell=[5, 4, 0], pbc=SLAB, calculator=KQEq(model))
    assert structure_from_atoms(atoms).boundary == "slab"
    assert atoms.get_potential_energy() == 0.0
    with pytest.raises(PropertyNotImplementedError, match="`stress` needs a periodic cell with a volume"):
        atoms.get_stress()
