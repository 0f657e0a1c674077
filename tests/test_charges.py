"""Charge equilibration: closed forms, conditions of a minimum, refusals."""

from __future__ import annotations

from math import erf, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.data import covalent_radii
from ase.io import read

from kqeq_md.charges.equilibrate import electrostatic_gradient, equilibrate
from kqeq_md.charges.field import dipole, field_potential
from kqeq_md.charges.solver import solve_total_charge
from kqeq_md.electrostatics.coulomb import coulomb
from kqeq_md.errors import ChargeError, FieldError
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT


def positive_matrix(n: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a @ a.T + np.eye(n)


@pytest.mark.parametrize("total", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("field", [0.0, 0.08])
def test_two_atoms_in_closed_form(total: float, field: float) -> None:
    """q_1 = (b_2 - b_1 + Q (J_22 - J_12)) / (J_11 + J_22 - 2 J_12), b_i = chi_i - F z_i."""
    eta, width, chi, z = np.array([6.0, 8.0]), np.array([1.1, 0.8]), np.array([3.0, 8.0]), np.array([-0.4, 2.1])
    j11, j22 = (eta[i] + COULOMB_CONSTANT / (sqrt(pi) * width[i]) for i in (0, 1))
    j12 = COULOMB_CONSTANT * erf((z[1] - z[0]) / sqrt(2 * (width**2).sum())) / (z[1] - z[0])
    b = chi - field * z
    q1 = (b[1] - b[0] + total * (j22 - j12)) / (j11 + j22 - 2 * j12)
    q2 = total - q1
    energy = b[0] * q1 + b[1] * q2 + 0.5 * (j11 * q1**2 + j22 * q2**2) + j12 * q1 * q2

    structure = Structure([11, 17], [[0, 0, z[0]], [0, 0, z[1]]], charge=total, field=[0, 0, field])
    solution = equilibrate(structure, coulomb(structure, width, eta, 1e-5), chi, 1e-12)
    np.testing.assert_allclose(solution.charges, [q1, q2], rtol=1e-13)  # rounding
    assert solution.energies.sum() == pytest.approx(energy, rel=1e-13)


@pytest.mark.parametrize("total", [0.0, 2.0])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_minimum_under_the_total_charge(n: int, total: float) -> None:
    matrix, linear = positive_matrix(n, seed=n), np.random.default_rng(n).normal(size=n)
    q = solve_total_charge(matrix, linear, total, 1e-10)
    assert q.sum() == pytest.approx(total, abs=1e-13)  # rounding of n charges of order 1
    potential = matrix @ q + linear
    assert np.ptp(potential) < 1e-12 * np.abs(matrix).sum(axis=1).max()  # all potentials equal, to rounding

    # the same by Lagrange's equations, solved as they stand
    bordered = np.block([[matrix, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    wanted = np.linalg.solve(bordered, np.append(-linear, total))[:n]
    np.testing.assert_allclose(q, wanted, atol=1e-11)  # rounding times a condition number of some hundreds


def test_lowest_energy_of_its_neighbourhood() -> None:
    matrix, linear = positive_matrix(6, seed=2), np.arange(6.0)
    q = solve_total_charge(matrix, linear, 1.0, 1e-10)

    def energy(x: np.ndarray) -> float:
        return float(linear @ x + 0.5 * x @ matrix @ x)

    for transfer in np.random.default_rng(3).normal(size=(10, 6)):
        transfer -= transfer.mean()
        # exactly quadratic about the minimum; rounding of energies of order 10
        assert energy(q + transfer) - energy(q) == pytest.approx(0.5 * transfer @ matrix @ transfer, abs=1e-12)


@pytest.mark.parametrize("total", [0.0, -1.0])
def test_one_atom(total: float) -> None:
    assert solve_total_charge(np.array([[-5.0]]), np.array([2.0]), total, 1e-12).tolist() == [total]


def test_a_constant_in_the_electronegativity_moves_no_charge() -> None:
    matrix, linear = positive_matrix(5, seed=4), np.arange(5.0)
    shifted = solve_total_charge(matrix, linear + 7.0, 1.0, 1e-10)
    np.testing.assert_allclose(shifted, solve_total_charge(matrix, linear, 1.0, 1e-10), atol=1e-13)  # rounding


def test_definite_for_transfers_alone_is_enough() -> None:
    """A negative eigenvalue along (1, ..., 1) changes the energy by a constant: the charges stay."""
    matrix, linear = positive_matrix(5, seed=5), np.arange(5.0)
    indefinite = matrix - 20.0
    assert np.linalg.eigvalsh(indefinite).min() < -10
    np.testing.assert_allclose(
        solve_total_charge(indefinite, linear, 1.0, 1e-10), solve_total_charge(matrix, linear, 1.0, 1e-10), atol=1e-12
    )  # rounding


@pytest.mark.parametrize("n", [2, 6])
def test_indefinite_for_transfers_is_refused(n: int) -> None:
    """Positive along (1, ..., 1) and all transfers but one."""
    matrix = positive_matrix(n, seed=6)
    soft = np.zeros(n)
    soft[:2] = 1.0, -1.0
    matrix -= (0.51 * soft @ matrix @ soft) / 2 * np.outer(soft, soft)
    with pytest.raises(
        ChargeError, match="not positive definite for charge transfer: `hardness` is too negative"
    ) as caught:
        solve_total_charge(matrix, np.arange(float(n)), 0.0, 1e-8)
    assert "\n" not in str(caught.value)


def test_a_residual_above_the_tolerance_is_refused() -> None:
    """One soft transfer in a hard matrix: 1e4 e against 1e9 eV/e^2 leave 1e13 roundings of 1e-16 in the potentials."""
    soft = np.random.default_rng(7).normal(size=5)
    soft -= soft.mean()
    along = np.outer(soft, soft) / (soft @ soft)
    matrix = 1e9 * (np.eye(5) - along) + 1e-4 * along
    with pytest.raises(ChargeError, match="relative residual of 1e-08, got") as caught:
        solve_total_charge(matrix, np.arange(5.0), 0.0, 1e-8)
    assert "\n" not in str(caught.value)


def test_nan_never_passes() -> None:
    with pytest.raises(ChargeError):
        solve_total_charge(positive_matrix(3, seed=1), np.array([0.0, np.nan, 1.0]), 0.0, 1e-8)


def test_atoms_without_electronegativity_share_a_charge() -> None:
    """Nothing drives the charges but Q: the residual is measured against J q as well."""
    matrix = positive_matrix(4, seed=8)
    q = solve_total_charge(matrix, np.zeros(4), 1.0, 1e-10)
    assert np.ptp(matrix @ q) < 1e-12
    assert not solve_total_charge(matrix, np.zeros(4), 0.0, 1e-10).any()


# --- field and dipole


def test_field_potential_and_dipole() -> None:
    structure = Structure([11, 17], [[1, 2, 3], [0, -1, 4]], field=[0.1, 0.2, -0.3])
    np.testing.assert_allclose(field_potential(structure), [0.4, 1.4], rtol=1e-14)
    np.testing.assert_allclose(dipole(structure, np.array([2.0, -1.0])), [2.0, 5.0, 2.0], rtol=1e-14)
    assert field_potential(Structure([11], [[1, 2, 3]])) is None


def test_field_along_a_periodic_axis_is_refused_with_the_ways_out() -> None:
    structure = Structure([11], [[0, 0, 0]], cell=5 * np.eye(3), pbc=True, field=[0, 0, 0.05])
    with pytest.raises(FieldError, match=r"`field` must be zero along periodic axes, got \[0.0, 0.0, 0.05\]") as caught:
        field_potential(structure)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "depends on how atoms are wrapped",
        "open boundary",
        "boundary f f f",
        "per fragment",
        "split charges",
    ):
        assert part in message
    assert dipole(structure, np.ones(1)) is None


def test_gradient_of_the_field_term() -> None:
    """-F.mu alone: the difference of gradients with and without it, at the same charges."""
    structure = Structure([11, 17], [[0, 0, 0], [0, 0, 3.0]], charge=1.0, field=[0.1, 0.0, 0.2])
    operator, q = coulomb(structure, np.ones(2), np.ones(2), 1e-5), np.array([0.7, 0.3])
    bare = Structure([11, 17], structure.positions, charge=1.0)
    with_field, without = electrostatic_gradient(structure, operator, q), electrostatic_gradient(bare, operator, q)
    np.testing.assert_allclose(with_field[0] - without[0], -np.outer(q, [0.1, 0, 0.2]), atol=1e-14)  # rounding
    np.testing.assert_allclose(with_field[1] - without[1], -np.outer([0.1, 0, 0.2], [0, 0, 0.9]), atol=1e-14)


def test_solutions_of_the_water_hexamer(reference_data: Path) -> None:
    """QEq with UFF electronegativities (H 4.528, O 8.741 eV), Q = -1, 0, 1, with and without field."""
    folder = reference_data / "golden_qpac_A_matrix"
    atoms: Any = read(folder / "w6.xyz")
    chi = np.where(atoms.numbers == 8, 8.741, 4.528)
    rows = np.loadtxt(folder / "w6_qeq_solutions_uffchi.csv", delimiter=",", skiprows=1)
    assert len(rows) >= 7
    for total, fx, fy, fz, energy, *rest in rows:
        structure = Structure(atoms.numbers, atoms.positions, charge=total, field=[fx, fy, fz])
        operator = coulomb(structure, covalent_radii[atoms.numbers], np.zeros(18), 1e-5)
        solution = equilibrate(structure, operator, chi, 1e-12)
        # ten printed decimals; the reference's constants differ from CODATA 2018 by 1e-8
        assert solution.energies.sum() == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(dipole(structure, solution.charges), rest[:3], atol=1e-7)
        np.testing.assert_allclose(solution.charges, rest[3:], atol=1e-7)
