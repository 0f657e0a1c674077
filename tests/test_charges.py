"""Charge equilibration by factorisation: closed forms, conditions of a minimum, fragments, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import erf, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.data import covalent_radii
from ase.io import read

from kqeq_md.charges.charge_model import Hold
from kqeq_md.charges.cholesky import solve_dense
from kqeq_md.charges.constraints import Constraint, fragment_charges, total_charge
from kqeq_md.charges.equilibrate import ChargeSolver, Equilibrium, Problem, electrostatic_gradient
from kqeq_md.charges.field import effective_field, has_dipole
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.errors import ChargeError, FieldError
from kqeq_md.neighbours.half_list import NeighbourList
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT


def positive_matrix(n: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a @ a.T + np.eye(n)


def solve_total(matrix: np.ndarray, linear: np.ndarray, total: float) -> np.ndarray:
    return solve_dense(matrix, linear, total_charge(len(linear), total))


def lagrange(matrix: np.ndarray, linear: np.ndarray, constraint: Constraint) -> np.ndarray:
    """The same by Lagrange's equations, solved as they stand: a bordered matrix, one multiplier for each group."""
    n, groups = len(linear), len(constraint.charges)
    member = (constraint.group[:, None] == np.arange(groups)).astype(float)
    bordered = np.block([[matrix, member], [member.T, np.zeros((groups, groups))]])
    return np.linalg.solve(bordered, np.concatenate([-linear, constraint.charges]))[:n]


def problem_of(structure: Structure, operator: DirectCoulomb, chi: np.ndarray) -> Problem:
    """Charges that flow freely; the factorisation looks at no neighbours."""
    constraint = total_charge(len(structure), structure.charge)
    return Problem(structure, operator, NeighbourList(), chi, constraint, structure.field, structure.positions)


def equilibrate(structure: Structure, operator: DirectCoulomb, chi: np.ndarray, tolerance: float) -> Equilibrium:
    """A new solver for one open structure."""
    return ChargeSolver(tolerance).solve(problem_of(structure, operator, chi))


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
    solution = equilibrate(structure, DirectCoulomb(structure.positions, width, eta), chi, 1e-12)
    np.testing.assert_allclose(solution.charges, [q1, q2], rtol=1e-13)  # rounding
    assert solution.energies.sum() == pytest.approx(energy, rel=1e-13)


@pytest.mark.parametrize("total", [0.0, 2.0])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_minimum_under_the_total_charge(n: int, total: float) -> None:
    matrix, linear = positive_matrix(n, seed=n), np.random.default_rng(n).normal(size=n)
    q = solve_total(matrix, linear, total)
    assert q.sum() == pytest.approx(total, abs=1e-13)  # rounding of n charges of order 1
    potential = matrix @ q + linear
    assert np.ptp(potential) < 1e-12 * np.abs(matrix).sum(axis=1).max()  # all potentials equal, to rounding

    wanted = lagrange(matrix, linear, total_charge(n, total))
    np.testing.assert_allclose(q, wanted, atol=1e-11)  # rounding times a condition number of some hundreds


def test_lowest_energy_of_its_neighbourhood() -> None:
    matrix, linear = positive_matrix(6, seed=2), np.arange(6.0)
    q = solve_total(matrix, linear, 1.0)

    def energy(x: np.ndarray) -> float:
        return float(linear @ x + 0.5 * x @ matrix @ x)

    for transfer in np.random.default_rng(3).normal(size=(10, 6)):
        transfer -= transfer.mean()
        # exactly quadratic about the minimum; rounding of energies of order 10
        assert energy(q + transfer) - energy(q) == pytest.approx(0.5 * transfer @ matrix @ transfer, abs=1e-12)


@pytest.mark.parametrize("total", [0.0, -1.0])
def test_one_atom(total: float) -> None:
    assert solve_total(np.array([[-5.0]]), np.array([2.0]), total).tolist() == [total]


def test_a_constant_in_the_electronegativity_moves_no_charge() -> None:
    matrix, linear = positive_matrix(5, seed=4), np.arange(5.0)
    shifted = solve_total(matrix, linear + 7.0, 1.0)
    np.testing.assert_allclose(shifted, solve_total(matrix, linear, 1.0), atol=1e-13)  # rounding


def test_definite_for_transfers_alone_is_enough() -> None:
    """A negative eigenvalue along (1, ..., 1) changes the energy by a constant: the charges stay."""
    matrix, linear = positive_matrix(5, seed=5), np.arange(5.0)
    indefinite = matrix - 20.0
    assert np.linalg.eigvalsh(indefinite).min() < -10
    np.testing.assert_allclose(
        solve_total(indefinite, linear, 1.0), solve_total(matrix, linear, 1.0), atol=1e-12
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
        solve_total(matrix, np.arange(float(n)), 0.0)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class GivenMatrix(DirectCoulomb):
    """J as it is given."""

    given: np.ndarray = None  # type: ignore[assignment]

    def matrix(self) -> np.ndarray:
        return self.given


def solve_given(matrix: np.ndarray, chi: np.ndarray, tolerance: float) -> np.ndarray:
    """The charges of a `ChargeSolver` for a neutral open structure with J = matrix."""
    n = len(matrix)
    structure = Structure([11] * n, 5.0 * np.arange(3 * n).reshape(n, 3))
    operator = GivenMatrix(structure.positions, np.ones(n), np.zeros(n), matrix)
    return equilibrate(structure, operator, chi, tolerance).charges


def test_a_residual_above_the_tolerance_is_refused() -> None:
    """One soft transfer in a hard matrix: 1e4 e against 1e9 eV/e^2 leave 1e13 roundings of 1e-16 in the potentials."""
    soft = np.random.default_rng(7).normal(size=5)
    soft -= soft.mean()
    along = np.outer(soft, soft) / (soft @ soft)
    matrix = 1e9 * (np.eye(5) - along) + 1e-4 * along
    with pytest.raises(ChargeError, match="must reach a residual of .* eV/e, got") as caught:
        solve_given(matrix, np.arange(5.0), 1e-8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["electronegativity", "matrix"])
def test_nan_never_passes(where: str) -> None:
    matrix, chi = positive_matrix(3, seed=1), np.arange(3.0)
    if where == "matrix":
        matrix[0, 1] = matrix[1, 0] = np.nan
    else:
        chi[1] = np.nan
    with pytest.raises(ChargeError):
        solve_given(matrix, chi, 1e-8)


def test_atoms_without_electronegativity_share_a_charge() -> None:
    """Nothing drives the charges but Q: the residual is measured against J q as well."""
    matrix = positive_matrix(4, seed=8)
    q = solve_total(matrix, np.zeros(4), 1.0)
    assert np.ptp(matrix @ q) < 1e-12
    assert not solve_total(matrix, np.zeros(4), 0.0).any()


# --- fragments

GROUPS = {
    "all atoms": ([[0, 2, 5], [1, 6], [3, 4]], [0.5, -1.0, 1.5]),
    "with a rest": ([[6, 1], [4]], [0.25, -0.5]),
    "one fragment": ([[3, 0]], [0.7]),
    "every atom": ([[k] for k in range(7)], [0.1, 0.2, 0.3, 0.4, -0.5, -0.6, 1.1]),
    "none": ([], []),
}


@pytest.mark.parametrize("name", GROUPS)
def test_minimum_under_fragment_charges(name: str) -> None:
    fragments, charges = GROUPS[name]
    matrix, linear = positive_matrix(7, seed=9), np.random.default_rng(9).normal(size=7)
    constraint = fragment_charges(7, 1.0, fragments, charges)
    q = solve_dense(matrix, linear, constraint)
    assert q.sum() == pytest.approx(1.0, abs=1e-14)  # rounding of seven charges, as below
    for fragment, charge in zip(fragments, charges, strict=True):
        assert q[fragment].sum() == pytest.approx(charge, abs=1e-14)
        assert np.ptp((matrix @ q + linear)[fragment]) < 1e-12  # one potential in each: rounding of numbers below 100
    np.testing.assert_allclose(q, lagrange(matrix, linear, constraint), atol=1e-12)  # condition number of 30


def test_no_fragments_are_the_total_charge() -> None:
    matrix, linear = positive_matrix(4, seed=3), np.arange(4.0)
    for fragments, charges in (([], []), ([[0, 1, 2, 3]], [0.5])):
        q = solve_dense(matrix, linear, fragment_charges(4, 0.5, fragments, charges))
        np.testing.assert_array_equal(q, solve_total(matrix, linear, 0.5))


def test_order_within_and_of_fragments_does_not_matter() -> None:
    matrix, linear = positive_matrix(6, seed=12), np.arange(6.0)
    first = solve_dense(matrix, linear, fragment_charges(6, 1.0, [[0, 1, 4], [2, 5]], [0.5, -0.5]))
    second = solve_dense(matrix, linear, fragment_charges(6, 1.0, [np.array([5, 2]), (4, 0, 1)], [-0.5, 0.5]))
    np.testing.assert_allclose(first, second, atol=1e-14)  # rounding


def test_every_atom_its_own_fragment() -> None:
    """Nothing can flow, so that nothing has to be positive definite."""
    charges = np.array([1.0, -2.0, 0.5])
    constraint = fragment_charges(3, -0.5, [[0], [1], [2]], charges)
    np.testing.assert_array_equal(solve_dense(-np.eye(3), np.arange(3.0), constraint), charges)


def test_soft_only_between_fragments_is_enough() -> None:
    """What J does to a transfer that the constraint forbids doesn't matter."""
    matrix, linear = positive_matrix(4, seed=13), np.arange(4.0)
    between = np.array([1.0, 1.0, -1.0, -1.0])
    soft = matrix - 100.0 * np.outer(between, between)
    constraint = fragment_charges(4, 0.0, [[0, 1], [2, 3]], [0.5, -0.5])
    got, wanted = solve_dense(soft, linear, constraint), lagrange(soft, linear, constraint)
    np.testing.assert_allclose(got, wanted, atol=1e-12)  # rounding of potentials of 100
    with pytest.raises(ChargeError, match="not positive definite for charge transfer"):
        solve_total(soft, linear, 0.0)


def test_fragments_far_apart_are_two_systems() -> None:
    """At 1e9 A the point charges of the other fragment are 1e-8 V, alike for all atoms to a part in 1e9."""
    rng = np.random.default_rng(5)
    here, chi, width, eta = 2.0 * rng.normal(size=(4, 3)), rng.normal(size=8), rng.uniform(0.5, 1.5, 8), np.full(8, 5.0)
    positions = np.concatenate([here, here + [0.0, 0.0, 1e9]])
    matrix = DirectCoulomb(positions, width, eta).matrix()
    q = solve_dense(matrix, chi, fragment_charges(8, 0.5, [range(4), range(4, 8)], [1.0, -0.5]))
    for rows, charge in ((slice(0, 4), 1.0), (slice(4, 8), -0.5)):
        alone = DirectCoulomb(here, width[rows], eta[rows]).matrix()
        # coordinates of 1e9 A round to 1e-7 A
        np.testing.assert_allclose(q[rows], solve_total(alone, chi[rows], charge), atol=1e-6)
    shared = solve_total(matrix, chi, 0.5)
    assert abs(shared[:4].sum() - 1.0) > 0.1  # one constraint for both lets charge flow through the vacuum


@pytest.mark.parametrize(
    ("fragments", "charges", "message"),
    [
        ([[0, 1], [2, 1, 3]], [0, 0], "`fragments` must not overlap, got atom 1 in fragments 0 and 1"),
        ([[0, 1], []], [0, 0], r"`fragments` must be lists of atoms, got \[\] as fragment 1"),
        ([[0, 1.5]], [0], r"`fragments` must be lists of atoms, got \[0, 1.5\] as fragment 0"),
        ([[[0, 1]]], [0], r"`fragments` must be lists of atoms, got \[\[0, 1\]\] as fragment 0"),
        ([3], [0], "`fragments` must be a whole number for each of 4 atoms, got 1 of type int64"),
        ([[0], 3], [0, 0], "`fragments` must be lists of atoms, got 3 as fragment 1"),
        ([[True, False]], [0], "`fragments` must be lists of atoms"),
        ([[0], [2, 4]], [0, 0], "`fragments` must name atoms from 0 to 3, got 4 in fragment 1"),
        ([[0, -1]], [0], "`fragments` must name atoms from 0 to 3, got -1 in fragment 0"),
        ([[0, 2, 0]], [0], r"`fragments` must not name an atom twice, got \[0, 2, 0\] as fragment 0"),
        ([[0, 1], [2, 3]], [0.5, 0.4], "`fragment_charges` must add up to the total charge 1, got 0.9"),
        ([[0, 1], [2, 3]], [1.0], r"`fragment_charges` must be a finite number for each of 2 fragments, got \[1.0\]"),
        ([[0, 1]], [[1.0]], "`fragment_charges` must be a finite number for each of 1 fragments"),
        ([[0, 1]], [np.nan], "`fragment_charges` must be a finite number for each of 1 fragments"),
        ([[0, 1]], 1.0, "`fragment_charges` must be a finite number for each of 1 fragments, got 1.0"),
        ([], [1.0], "`fragment_charges` must be a finite number for each of 0 fragments"),
    ],
)
def test_impossible_fragments_are_refused(fragments: Sequence[Any], charges: Any, message: str) -> None:
    with pytest.raises(ChargeError, match=message) as caught:
        fragment_charges(4, 1.0, fragments, charges)
    assert "\n" not in str(caught.value)


def test_sums_within_the_rounding_of_decimals_pass() -> None:
    assert sum([0.1] * 10) != 1.0
    fragment_charges(10, 1.0, [[k] for k in range(10)], [0.1] * 10)


def test_projection() -> None:
    """P is the orthogonal projection on vectors without sums; `enforce` changes nothing but the sums."""
    rng = np.random.default_rng(14)
    for constraint in (total_charge(6, 0.7), fragment_charges(6, 0.7, [[0, 3], [1, 2, 4]], [0.2, 0.1])):
        p = np.array([constraint.project(row) for row in np.eye(6)])
        np.testing.assert_allclose(p, p.T, atol=1e-15)  # rounding, as below
        np.testing.assert_allclose(p @ p, p, atol=1e-15)
        assert np.linalg.matrix_rank(p) == 6 - len(constraint.charges)
        x = rng.normal(size=6)
        q = constraint.enforce(x)
        np.testing.assert_allclose(np.bincount(constraint.group, q), constraint.charges, atol=1e-15)
        np.testing.assert_allclose(constraint.project(q), constraint.project(x), atol=1e-15)
        order = rng.permutation(6)
        mixed = constraint.ordered(order).project(x[order])
        np.testing.assert_allclose(mixed, constraint.project(x)[order], atol=1e-15)


# --- field and dipole


def test_field_and_dipole() -> None:
    """Two atoms that exchange nothing."""
    structure = Structure([11, 17], [[1, 2, 3], [0, -1, 4]], charge=1.0, field=[0.1, 0.2, -0.3])
    operator = DirectCoulomb(structure.positions, np.ones(2), np.ones(2))
    frozen = fragment_charges(2, 1.0, [[0], [1]], [2.0, -1.0])
    problem = replace(problem_of(structure, operator, np.zeros(2)), constraint=frozen)
    got = ChargeSolver(1e-12).solve(problem)
    bare = ChargeSolver(1e-12).solve(replace(problem, field=np.zeros(3)))
    for solution in (got, bare):
        np.testing.assert_allclose(solution.dipole, [2.0, 5.0, 2.0], rtol=1e-14)
    # -F.R_i is 0.4 and 1.4 V
    np.testing.assert_allclose(got.energies - bare.energies, [2.0 * 0.4, -1.4], rtol=1e-13)


def test_field_along_a_periodic_axis_is_refused_with_the_ways_out() -> None:
    structure = Structure([11], [[0, 0, 0]], cell=5 * np.eye(3), pbc=True, field=[0, 0, 0.05])
    with pytest.raises(FieldError, match=r"`field` must be zero along periodic axes, got \[0.0, 0.0, 0.05\]") as caught:
        effective_field(structure, Hold(total_charge(1, 0.0)))
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
    assert not has_dipole(structure, Hold(total_charge(1, 0.0)))


def gradient_in_field(structure: Structure, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dE/dR and dE/d(strain) at given charges."""
    operator = DirectCoulomb(structure.positions, np.ones(2), np.ones(2))  # any operator: differences drop it
    problem = problem_of(structure, operator, np.zeros(2))
    given = Equilibrium(q, np.zeros(2), np.zeros(2), 0, q @ structure.positions, np.empty(0))
    return electrostatic_gradient(problem, Hold(problem.constraint), given)


def test_gradient_of_the_field_term() -> None:
    """-F.mu alone: the difference of gradients with and without it, at the same charges."""
    structure = Structure([11, 17], [[0, 0, 0], [0, 0, 3.0]], charge=1.0, field=[0.1, 0.0, 0.2])
    q = np.array([0.7, 0.3])
    bare = Structure([11, 17], structure.positions, charge=1.0)
    with_field, without = gradient_in_field(structure, q), gradient_in_field(bare, q)
    np.testing.assert_allclose(with_field[0] - without[0], -np.outer(q, [0.1, 0, 0.2]), atol=1e-14)  # rounding
    np.testing.assert_allclose(with_field[1] - without[1], -np.outer([0.1, 0, 0.2], [0, 0, 0.9]), atol=1e-14)


def test_gradient_of_the_field_term_of_a_slab(helpers: Any) -> None:
    """The field turns with the normal, so that heights alone count: F sum q z = 0.2 * (0.7 * 0 + 0.3 * 3)."""
    turn = helpers.random_rotation(2)
    positions, cell, q = np.array([[5.0, 0, 0], [1, 0, 3]]), np.diag([9.0, 8.0, 0.0]), np.array([0.7, 0.3])
    bare, inside = (
        Structure([11, 17], positions @ turn, cell=cell @ turn, pbc=(True, True, False), charge=1.0, field=f * turn[2])
        for f in (0.0, 0.2)
    )
    with_field, without = gradient_in_field(inside, q), gradient_in_field(bare, q)
    np.testing.assert_allclose(with_field[0] - without[0], -np.outer(q, 0.2 * turn[2]), atol=1e-14)  # rounding
    np.testing.assert_allclose(with_field[1] - without[1], -0.18 * np.outer(turn[2], turn[2]), atol=1e-14)


def test_solutions_of_the_water_hexamer(reference_data: Path) -> None:
    """QEq with UFF electronegativities (H 4.528, O 8.741 eV), Q = -1, 0, 1, with and without field."""
    folder = reference_data / "golden_qpac_A_matrix"
    atoms: Any = read(folder / "w6.xyz")
    chi = np.where(atoms.numbers == 8, 8.741, 4.528)
    rows = np.loadtxt(folder / "w6_qeq_solutions_uffchi.csv", delimiter=",", skiprows=1)
    assert len(rows) >= 7
    for total, fx, fy, fz, energy, *rest in rows:
        structure = Structure(atoms.numbers, atoms.positions, charge=total, field=[fx, fy, fz])
        operator = DirectCoulomb(structure.positions, covalent_radii[atoms.numbers], np.zeros(18))
        solution = equilibrate(structure, operator, chi, 1e-12)
        # ten printed decimals; the reference's constants differ from CODATA 2018 by 1e-8
        assert solution.energies.sum() == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(solution.dipole, rest[:3], atol=1e-7)
        np.testing.assert_allclose(solution.charges, rest[3:], atol=1e-7)
