"""Conjugate gradients, their preconditioner and start, the stability check, and what they remember between calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.charges import conjugate_gradient as module
from kqeq_md.charges.cholesky import solve_dense
from kqeq_md.charges.conjugate_gradient import (
    Solution,
    conjugate_gradient,
    refined_conjugate_gradient,
    residual_scale,
)
from kqeq_md.charges.constraints import Constraint, fragment_charges, total_charge
from kqeq_md.charges.history import ChargeHistory, extrapolate
from kqeq_md.charges.preconditioner import BUILD, RADIUS, Preconditioner, SparseInverse
from kqeq_md.charges.stability import SOFTEST, check_stability
from kqeq_md.electrostatics import coulomb
from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.gaussians import self_interaction
from kqeq_md.errors import ChargeError, FieldError, KqeqError, StructureError
from kqeq_md.local_part import LocalKernels, LocalPart
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import NeighbourList, find_pairs
from kqeq_md.potential import Potential
from kqeq_md.structure import Result, Structure
from kqeq_md.units import COULOMB_CONSTANT

SLAB = (True, True, False)


def positive_matrix(n: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a @ a.T + np.eye(n)


def iterate(
    matrix: np.ndarray,
    linear: np.ndarray,
    constraint: Constraint,
    tolerance: float = 1e-12,
    start: np.ndarray | None = None,
    precondition: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Solution:
    """Conjugate gradients with a given matrix, by default preconditioned with its diagonal."""
    diagonal = np.diag(matrix)
    return conjugate_gradient(
        lambda x: matrix @ x,
        precondition or (lambda x: x / diagonal),
        linear,
        constraint,
        np.zeros(len(linear)) if start is None else start,
        residual_scale(linear, diagonal, constraint),
        tolerance,
    )


def constraints(n: int, seed: int) -> dict[str, Constraint]:
    """Total charge, fragments with a rest, fragments of all atoms."""
    rows = np.random.default_rng(seed).permutation(n)
    cut = max(n // 3, 1)
    pieces = [rows[:cut], rows[cut : 2 * cut], rows[2 * cut :]]
    return {
        "total": total_charge(n, 0.7),
        "rest": fragment_charges(n, 0.7, [pieces[0]], [-0.4]),
        "all": fragment_charges(n, 0.7, pieces, [0.5, 1.0, -0.8]),
    }


# --- conjugate gradients


@pytest.mark.parametrize("kind", ["total", "rest", "all"])
@pytest.mark.parametrize("n", [3, 10, 60])
def test_equals_the_factorisation(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    matrix, linear, constraint = positive_matrix(n, seed=n), rng.normal(size=n), constraints(n, seed=n)[kind]
    wanted = solve_dense(matrix, linear, constraint)
    scale = residual_scale(linear, np.diag(matrix), constraint)
    for start in (np.zeros(n), rng.normal(size=n), wanted):
        got = iterate(matrix, linear, constraint, start=start)
        # the smallest eigenvalue is 1 eV/e^2 at least: a residual of 1e-12 scale is an error of as many e; rounding of
        # the factorisation beside it
        np.testing.assert_allclose(got.charges, wanted, rtol=0, atol=2e-12 * scale + 1e-12)
        np.testing.assert_allclose(got.induced, matrix @ got.charges, rtol=0, atol=1e-13 * np.abs(matrix).sum())
        sums = np.bincount(constraint.group, got.charges)
        np.testing.assert_allclose(sums, constraint.charges, rtol=0, atol=1e-13 * np.abs(got.charges).sum() + 1e-15)
    assert iterate(matrix, linear, constraint, tolerance=1e-10, start=wanted).iterations == 0


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-12])
def test_tolerance_is_the_relative_residual(tolerance: float) -> None:
    matrix, linear = positive_matrix(40, seed=1), np.random.default_rng(1).normal(size=40)
    constraint = total_charge(40, 2.0)
    got = iterate(matrix, linear, constraint, tolerance)
    # with the definition written out: |P (J q + b)| against |P b| + |J_ii Q / n|
    potential = matrix @ got.charges + linear
    scale = np.linalg.norm(linear - linear.mean()) + np.linalg.norm(np.diag(matrix) * 2.0 / 40)
    residual = np.linalg.norm(potential - potential.mean()) / scale
    assert residual <= tolerance + 1e-13  # the recursion leaves the true residual by rounding of products of 1e3
    fewer = iterate(matrix, linear, constraint, 100 * tolerance)
    assert fewer.iterations < got.iterations


@pytest.mark.parametrize("size", [1e3, 1e6, 1e10])
def test_bad_start_is_no_excuse(size: float) -> None:
    """The tolerance holds, or an error comes, wherever the search starts."""
    matrix, linear = positive_matrix(40, seed=1), np.random.default_rng(1).normal(size=40)
    constraint = total_charge(40, 2.0)
    try:
        got = iterate(matrix, linear, constraint, 1e-10, start=size * np.random.default_rng(2).normal(size=40))
    except ChargeError:
        return
    residual = np.linalg.norm(constraint.project(matrix @ got.charges + linear))
    # and the rounding of products with J of 1e3 eV/e
    assert residual <= 1e-10 * residual_scale(linear, np.diag(matrix), constraint) + 1e-12


def test_exact_inverse_needs_one_iteration() -> None:
    matrix, linear = positive_matrix(30, seed=2), np.random.default_rng(2).normal(size=30)
    inverse = np.linalg.inv(matrix)
    one = fragment_charges(30, 0.0, [range(30)], [0.0])
    # of the full matrix; the constraint makes it inexact along one direction: one iteration more
    assert iterate(matrix, linear, one, 1e-10, precondition=lambda x: inverse @ x).iterations <= 2
    assert iterate(matrix, linear, one, 1e-10).iterations > 5


@pytest.mark.parametrize("kind", ["total", "rest", "all"])
def test_indefinite_matrices_are_refused(kind: str) -> None:
    """One negative eigenvalue of 40 for allowed transfers, seen through a right-hand side with all of them."""
    n = 40
    constraint = constraints(n, seed=3)[kind]
    soft = constraint.project(np.random.default_rng(4).normal(size=n))
    soft /= np.linalg.norm(soft)
    matrix = positive_matrix(n, seed=3)
    matrix -= (soft @ matrix @ soft + 0.1) * np.outer(soft, soft)
    with pytest.raises(ChargeError, match="not positive definite for charge transfer: `hardness` is too neg") as caught:
        iterate(matrix, np.random.default_rng(5).normal(size=n), constraint)
    assert "curvature -" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_indefinite_outside_of_the_constraint_is_fine() -> None:
    matrix, linear = positive_matrix(12, seed=6), np.arange(12.0)
    inverse = np.diag(1 / np.diag(matrix))
    got = iterate(matrix - 20.0, linear, total_charge(12, 1.0), 1e-12, precondition=lambda x: inverse @ x)
    np.testing.assert_allclose(got.charges, iterate(matrix, linear, total_charge(12, 1.0)).charges, atol=1e-10)
    # residuals of 1e-12 times 50 eV/e


def test_iteration_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, linear = positive_matrix(50, seed=7), np.random.default_rng(7).normal(size=50)
    needed = iterate(matrix, linear, total_charge(50, 0.0)).iterations
    monkeypatch.setattr(module, "ITERATIONS", needed)
    assert iterate(matrix, linear, total_charge(50, 0.0)).iterations == needed
    monkeypatch.setattr(module, "ITERATIONS", needed - 1)
    match = f"must reach a residual of .* eV/e within {needed - 1} iterations, got .*: `hardness` is close to"
    with pytest.raises(ChargeError, match=match) as caught:
        iterate(matrix, linear, total_charge(50, 0.0))
    assert "\n" not in str(caught.value)


def test_hopeless_condition_is_an_error() -> None:
    """Eigenvalues over fourteen powers of ten: no end within 500 iterations, and no endless loop."""
    rng = np.random.default_rng(8)
    q, _ = np.linalg.qr(rng.normal(size=(300, 300)))
    matrix = (q * np.logspace(-7, 7, 300)) @ q.T
    with pytest.raises(ChargeError, match="residual of .* eV/e within 500 iterations|not positive definite"):
        iterate(0.5 * (matrix + matrix.T), rng.normal(size=300), total_charge(300, 0.0))


def test_nothing_drives_nothing() -> None:
    """A right-hand side of zero, or one that the constraint takes off, leaves the charges at zero at once."""
    matrix = positive_matrix(9, seed=10)
    for linear in (np.zeros(9), np.full(9, 3.0)):
        got = iterate(matrix, linear, total_charge(9, 0.0))
        assert got.iterations == 0
        assert not got.charges.any()
    forgotten = iterate(matrix, np.zeros(9), total_charge(9, 0.0), start=np.arange(9.0))
    np.testing.assert_allclose(forgotten.charges, 0.0, atol=1e-10)  # rounding of the start's potentials of 100 eV/e
    spread = iterate(matrix, np.zeros(9), total_charge(9, 1.0))
    np.testing.assert_allclose(spread.charges, solve_dense(matrix, np.zeros(9), total_charge(9, 1.0)), atol=1e-11)


@pytest.mark.parametrize("total", [0.0, -1.0])
def test_nothing_can_flow(total: float) -> None:
    one = iterate(np.array([[5.0]]), np.array([2.0]), total_charge(1, total))
    assert (one.charges.tolist(), one.iterations) == ([total], 0)
    charges = np.array([1.0, -2.0, 0.5])
    frozen = fragment_charges(3, -0.5, [[0], [1], [2]], charges)
    got = iterate(np.diag([1.0, 2.0, 3.0]), np.arange(3.0), frozen, start=np.ones(3))
    assert (got.charges.tolist(), got.iterations) == (charges.tolist(), 0)


@pytest.mark.parametrize("where", ["linear", "start", "matrix", "preconditioner"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_never_passes(where: str, value: float) -> None:
    matrix, linear, start, inverse = positive_matrix(6, seed=11), np.arange(6.0), np.zeros(6), np.eye(6)
    for name, array in (("linear", linear), ("start", start), ("matrix", matrix), ("preconditioner", inverse)):
        if name == where:
            array[(1,) * array.ndim] = value
    with np.errstate(all="ignore"), pytest.raises(ChargeError):
        iterate(matrix, linear, total_charge(6, 0.0), start=start, precondition=lambda x: inverse @ x)


# --- preconditioner


def sparse_inverse(structure: Structure, width: np.ndarray, hardness: np.ndarray) -> tuple[SparseInverse, np.ndarray]:
    """The sparse inverse, and its factor G as a matrix."""
    n = len(structure)
    neighbours = NeighbourList()
    neighbours.update(structure, RADIUS)  # keeps the order of few atoms
    inverse = SparseInverse(neighbours, RADIUS, width, hardness, threads=1)
    factor = np.zeros((n, n))
    factor[np.repeat(np.arange(n), np.diff(inverse.first)), inverse.column] = inverse.value
    return inverse, factor


def rough_matrix(positions: np.ndarray, width: np.ndarray, hardness: np.ndarray) -> np.ndarray:
    """kC / sqrt(r^2 + pi / (4 g^2)), the interaction that the inverse is made of, and J_ii."""
    distance = np.linalg.norm(positions[:, None] - positions, axis=2)
    out = COULOMB_CONSTANT / np.sqrt(distance**2 + np.pi / 2 * (width[:, None] ** 2 + width**2))
    return out + np.diag(hardness)


def test_interaction_of_the_inverse_is_near_that_of_gaussians() -> None:
    """Equal at r = 0, by the self term, and far away; in between a preconditioner may be rough."""
    width, hardness = np.array([1.1, 0.8]), np.array([6.0, 8.0])
    for distance, most in ((1e-6, 1e-9), (2.0, 0.15), (20.0, 0.01)):  # of J_12; at most 0.114, at 2 to 3 A, and 0.004
        positions = np.array([[0, 0, 0], [0, 0, distance]])
        rough, j = rough_matrix(positions, width, hardness), DirectCoulomb(positions, width, hardness).matrix()
        np.testing.assert_allclose(rough, j, rtol=most)


def test_exact_where_everyone_is_a_neighbour(helpers: Any) -> None:
    structure = helpers.cluster()
    distance = np.linalg.norm(structure.positions[:, None] - structure.positions, axis=2)
    close = helpers.moved(structure, 0.9 * RADIUS / distance.max() * structure.positions)
    width, hardness = np.linspace(0.5, 1.2, 8), np.linspace(5.0, 9.0, 8)
    inverse, factor = sparse_inverse(close, width, hardness)
    matrix = rough_matrix(close.positions, width, hardness)
    # single precision of G, 6e-8 of its elements of 0.3, times elements of 30 and eight terms of each sum
    np.testing.assert_allclose(factor @ matrix @ factor.T, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(np.tril(factor), factor)
    applied = np.array([inverse.apply(row) for row in np.eye(8)])
    np.testing.assert_allclose(applied @ matrix, np.eye(8), atol=1e-5)


@pytest.mark.parametrize("pbc", [False, SLAB, True])
def test_inverse_is_symmetric_and_positive_definite(pbc: Any, helpers: Any) -> None:
    """Whatever atoms see of each other; and it is near the inverse of bare J where it is sparse."""
    solid = helpers.rock_salt(2, rattle=0.3)
    structure = Structure(solid.numbers, solid.positions, cell=solid.cell, pbc=pbc)
    inverse, factor = sparse_inverse(structure, np.where(solid.numbers == 11, 1.1, 0.8), np.zeros(64))
    applied = np.array([inverse.apply(row) for row in np.eye(64)])
    np.testing.assert_allclose(applied, applied.T, atol=1e-15)  # rounding: elements are below 1
    np.testing.assert_allclose(applied, factor.T @ factor, atol=1e-15)
    assert np.linalg.eigvalsh(applied).min() > 1e-3  # that of all charges alike, which repel by some 100 eV/e^2
    assert np.diff(inverse.first).max() < 64


def test_cell_smaller_than_the_radius() -> None:
    """Of several images of one atom the nearest counts, and no atom is its own neighbour."""
    cell = np.array([[3.1, 0, 0], [0.4, 3.3, 0], [-0.3, 0.5, 2.9]])
    structure = Structure([11, 17], [[0, 0, 0], [2.6, 2.7, 2.3]], cell=cell, pbc=True)
    inverse, factor = sparse_inverse(structure, np.array([1.1, 0.8]), np.array([6.0, 8.0]))
    assert inverse.first.tolist() == [0, 1, 3]
    shifts = np.array(list(np.ndindex(5, 5, 5))) - 2
    vectors = structure.positions[1] - structure.positions[0] + shifts @ cell
    nearest = vectors[np.linalg.norm(vectors, axis=1).argmin()]
    matrix = rough_matrix(np.array([np.zeros(3), nearest]), np.array([1.1, 0.8]), np.array([6.0, 8.0]))
    np.testing.assert_allclose(factor @ matrix @ factor.T, np.eye(2), atol=1e-6)  # single precision


def test_shortens_the_iteration(helpers: Any) -> None:
    structure = helpers.rock_salt(3, rattle=0.3)
    width, hardness = np.where(structure.numbers == 11, 1.1, 0.8), np.zeros(216)
    matrix = DirectCoulomb(structure.positions, width, hardness).matrix()
    inverse, _ = sparse_inverse(Structure(structure.numbers, structure.positions), width, hardness)
    chi = np.where(structure.numbers == 11, 3.0, 8.0) + np.random.default_rng(0).normal(size=216)
    bare = iterate(matrix, chi, total_charge(216, 0.0), 1e-6)
    helped = iterate(matrix, chi, total_charge(216, 0.0), 1e-6, precondition=inverse.apply)
    assert helped.iterations < 0.6 * bare.iterations  # measured: about 0.4


def test_negative_hardness_is_the_solvers_matter() -> None:
    """G knows nothing of the constraint, which may make negative hardness good: it is built as if there were none."""
    structure = Structure([11, 11, 11], [[0, 0, 0], [0, 0, 2.5], [0, 0, 5.5]])
    width = np.array([1.1, 2.5, 1.1])
    negative, none = (sparse_inverse(structure, width, np.full(3, h))[0] for h in (-20.0, 0.0))
    np.testing.assert_array_equal(negative.value, none.value)


def test_an_interaction_that_is_singular_to_rounding_is_refused() -> None:
    """Many wide charges in a small volume without hardness: eigenvalues below rounding."""
    grid = 0.25 * np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3)
    with pytest.raises(ChargeError, match="must be positive definite to rounding: `hardness` is too low"):
        sparse_inverse(Structure([11] * 64, grid), np.full(64, 5.0), np.zeros(64))


class FewAtoms:
    """J and the neighbours of a small cluster, for the rule by which the inverse is made anew."""

    def __init__(self, helpers: Any) -> None:
        self.structure = helpers.cluster()
        self.coulomb = DirectCoulomb(self.structure.positions, np.ones(8), np.ones(8))
        self.neighbours = NeighbourList()
        self.neighbours.update(self.structure, RADIUS)
        self.made = Preconditioner(threads=1)

    def step(self, iterations: int, follows: bool = True) -> int:
        self.made.at(self.coulomb, self.neighbours, follows)
        self.made.judge(iterations)
        return self.made.builds


def test_inverse_is_made_anew_when_its_age_has_cost_a_new_one(helpers: Any) -> None:
    few = FewAtoms(helpers)
    assert [few.step(5) for _ in range(100)] == [1] * 100
    grown = [few.step(9) for _ in range(20)]  # four more than usual, of which a half is no sign of age
    assert grown.index(2) == int(BUILD / 3.5) + 1
    assert few.step(9) == 2  # usual is now what the new one needs


def test_fluctuations_are_no_sign_of_age(helpers: Any) -> None:
    few = FewAtoms(helpers)
    assert [few.step(4 + k % 2) for k in range(200)][-1] == 1


def test_inverse_of_another_trajectory_is_of_no_use(helpers: Any) -> None:
    few = FewAtoms(helpers)
    assert [few.step(5), few.step(5), few.step(5, follows=False), few.step(5)] == [1, 1, 2, 2]
    few.neighbours.sorts += 1  # atoms have another order
    assert [few.step(5), few.step(5)] == [3, 3]


# --- start


SEQUENCES: dict[str, Callable[[float], np.ndarray]] = {
    "constant": lambda t: np.array([0.3, -1.0, 2.0, -1.3, 0.7, 0.1, 0.5]),
    "line": lambda t: np.array([1.0, -2.0, 0.5, 3.0, 0.0, 0.7, 1.1]) + t * np.array([0.1, 0.0, -0.2, 0.3, 1.0, 0.4, 0]),
    "cubic": lambda t: np.array([1.0 + t, t**2 - 2.0, 0.1 * t**3, t - t**3, 1.0, t, 2.0]),
    "sines": lambda t: np.concatenate([np.sin(np.array([0.3, 0.5, 0.8]) * t + p) for p in (0.0, 0.7, 2.0)]),
    "decay": lambda t: np.exp(-0.1 * t) * np.array([1.0, 2.0, -1.0, 0.0, -2.0, 3.0, 1.0]),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("step", [1.0, 0.1])
def test_linear_recurrences_are_followed(name: str, step: float) -> None:
    """Six terms continue any sum of six exponentials, polynomials and sines (two each) among them."""
    sequence = SEQUENCES[name]
    older = [sequence(-step * k) for k in range(1, 8)]
    error = np.abs(extrapolate(older, 0.0) - sequence(0.0)).max()
    # directions below 1e-13 of the history's square are left out, 3e-7 of the charges; measured at most 3e-7
    assert error < 1e-5
    assert error < 1e-2 * np.abs(older[0] - sequence(0.0)).max() + 1e-12  # far better than the last charges


@pytest.mark.parametrize("length", range(1, 8))
def test_few_steps(length: int) -> None:
    """One step repeats itself; n steps follow what n - 1 terms can; constants stay from the first step on."""
    constant = SEQUENCES["constant"](0.0)
    np.testing.assert_allclose(extrapolate([constant] * length, 1e-8), constant, rtol=1e-13)  # rounding
    decay = SEQUENCES["decay"]
    older = [decay(-float(k)) for k in range(1, length + 1)]
    wanted = decay(0.0) if length > 1 else older[0]
    np.testing.assert_allclose(extrapolate(older, 0.0), wanted, atol=1e-12)  # one exponential: rounding
    line = SEQUENCES["line"]
    older = [line(-float(k)) for k in range(1, length + 1)]
    if length > 2:
        np.testing.assert_allclose(extrapolate(older, 0.0), line(0.0), atol=1e-10)  # rounding over the overlap of steps


def test_zeros_are_followed_by_zeros() -> None:
    for length in (1, 2, 7):
        assert not extrapolate([np.zeros(5)] * length, 1e-8).any()


def test_noise_is_not_amplified() -> None:
    """Charges that a tolerance of 1e-5 leaves uncertain: no wild coefficients from their noise."""
    rng = np.random.default_rng(0)
    still = rng.normal(size=200)
    for noise in (1e-5, 1e-10):
        older = [still + noise * rng.normal(size=200) for _ in range(7)]
        # some times the noise, whose largest of 200 is 3
        assert np.abs(extrapolate(older, noise) - still).max() < 10 * noise


def test_noise_is_weighed_against_motion() -> None:
    """A curve in 200 dimensions that seven terms would follow but for its noise: not wild, and better than no terms."""
    rng = np.random.default_rng(3)
    a, b, c = rng.normal(size=(3, 200))
    older = [a + 0.01 * k * b + 0.001 * k**2 * c + 1e-6 * rng.normal(size=200) for k in range(1, 8)]
    error = np.linalg.norm(extrapolate(older, 1e-6) - a)
    assert error < 0.01 * np.linalg.norm(older[0] - a)  # measured 3e-4 of the step
    assert error < np.linalg.norm(extrapolate(older, 0.0) - a)


def moving(t: float, helpers: Any, step: float = 0.02) -> Structure:
    solid = helpers.rock_salt()
    velocity = np.random.default_rng(3).normal(size=(8, 3))
    return helpers.moved(solid, solid.positions + step * t * velocity)


def remembered(helpers: Any, count: int = 7) -> tuple[ChargeHistory, Constraint]:
    history, constraint = ChargeHistory(1e-8), total_charge(8, 0.0)
    for k in range(count):
        history.add(moving(k, helpers), constraint, np.arange(8.0) + 0.1 * k)
    return history, constraint


def test_history_follows_a_trajectory(helpers: Any) -> None:
    history, constraint = remembered(helpers)
    assert ChargeHistory(1e-8).guess(moving(0, helpers), constraint) is None
    guess = history.guess(moving(7, helpers), constraint)
    np.testing.assert_allclose(guess, np.arange(8.0) + 0.7, rtol=1e-9)  # a line: rounding


def test_history_holds_seven_steps(helpers: Any) -> None:
    history, constraint = ChargeHistory(1e-8), total_charge(8, 0.0)
    for k in range(20):  # nonsense before the last seven
        charges = np.arange(8.0) + 0.1 * k
        history.add(moving(k, helpers), constraint, charges if k >= 13 else np.random.default_rng(k).normal(size=8))
    np.testing.assert_allclose(history.guess(moving(20, helpers), constraint), np.arange(8.0) + 2.0, rtol=1e-9)


def swapped(structure: Structure, order: np.ndarray) -> Structure:
    return Structure(
        structure.numbers[order], structure.positions[order], cell=structure.cell, pbc=structure.pbc,
        charge=structure.charge, field=structure.field,
    )  # fmt: skip


@pytest.mark.parametrize("change", ["jump", "order", "element", "boundary", "fewer", "charge", "fragments"])
def test_history_ends(change: str, helpers: Any) -> None:
    history, constraint = remembered(helpers)
    following = moving(7, helpers)
    if change == "jump":
        far = following.positions.copy()
        far[5, 1] += 1.1
        following = helpers.moved(following, far)
    elif change == "order":
        following = swapped(following, np.array([1, 0, 2, 3, 4, 5, 6, 7]))
    elif change == "element":
        following = Structure([17, *following.numbers[1:]], following.positions, cell=following.cell, pbc=True)
    elif change == "boundary":
        following = Structure(following.numbers, following.positions)
    elif change == "fewer":
        following, constraint = swapped(following, np.arange(7)), total_charge(7, 0.0)
    elif change == "charge":
        constraint = total_charge(8, 1.0)
    else:
        constraint = fragment_charges(8, 0.0, [[0, 4]], [0.0])
    assert history.guess(following, constraint) is None
    # and what was forgotten stays so
    assert history.guess(moving(7, helpers), total_charge(8, 0.0)) is None


@pytest.mark.parametrize("pbc", [True, SLAB])
def test_wrapped_atoms_have_not_jumped(pbc: Any, helpers: Any) -> None:
    history, constraint = ChargeHistory(1e-8), total_charge(8, 0.0)
    rng = np.random.default_rng(4)
    for k in range(8):
        here = moving(k, helpers)
        integers = rng.integers(-2, 3, size=(8, 3)) * np.broadcast_to(pbc, 3)
        structure = Structure(here.numbers, here.positions + integers @ here.cell, cell=here.cell, pbc=pbc)
        guess = history.guess(structure, constraint)
        assert (guess is None) == (k == 0)
        history.add(structure, constraint, np.arange(8.0))
    lifted = structure.positions + np.array([0.0, 0.0, here.cell[2, 2]])
    again = history.guess(Structure(here.numbers, lifted, cell=here.cell, pbc=pbc), constraint)
    assert (again is None) == (pbc == SLAB)  # along its normal a slab does not repeat


# --- stability


BOUNDARIES = ["open, dense", "open, large", "slab", "periodic"]


def with_hardness(model: Model, sodium: float, chlorine: float) -> Model:
    return replace(model, hardness=np.array([sodium, chlorine]))


def placed(name: str, helpers: Any, rattle: float = 0.0) -> Structure:
    """Perfect rock salt: nothing but its symmetry drives charge, all Na and all Cl alike."""
    solid = helpers.rock_salt(4 if name == "open, large" else 2, rattle=rattle)
    pbc = {"slab": SLAB, "periodic": True}.get(name, False)
    return Structure(solid.numbers, solid.positions, cell=solid.cell, pbc=pbc)


@pytest.mark.parametrize("name", BOUNDARIES)
@pytest.mark.parametrize("hardness", [(-9.0, 8.0), (6.0, -12.0), (-5.0, -5.0), (-30.0, -30.0)])
def test_negative_hardness_is_refused(model: Model, name: str, hardness: tuple[float, float], helpers: Any) -> None:
    with pytest.raises(ChargeError, match="`hardness` is too") as caught:
        Potential(with_hardness(model, *hardness)).compute(placed(name, helpers))
    assert "\n" not in str(caught.value)


def softest(apply: Callable[[np.ndarray], np.ndarray], n: int) -> float:
    """Smallest eigenvalue of J for charge transfers, from the matrix."""
    constraint = total_charge(n, 0.0)
    matrix = np.array([constraint.project(apply(constraint.project(row))) for row in np.eye(n)])
    return float(np.linalg.eigvalsh(0.5 * (matrix + matrix.T) + 100.0 / n)[0])  # 100 eV/e^2 for the sum of charges


def sodium_alone(name: str, helpers: Any) -> Structure:
    """Perfect rock salt of one element: by symmetry no force drives charge in the periodic one."""
    structure = placed(name, helpers)
    return Structure(np.full(len(structure), 11), structure.positions, cell=structure.cell, pbc=structure.pbc)


def search(apply: Callable[[np.ndarray], np.ndarray], inverse: Callable[[np.ndarray], np.ndarray], n: int) -> None:
    """`check_stability` of a matrix for transfers among n atoms, as the solver makes it."""
    free = total_charge(n, 0.0)

    def respond(x: np.ndarray) -> np.ndarray:
        return conjugate_gradient(apply, inverse, -x, free, np.zeros(n), 1.0, 1e-6).charges

    check_stability(respond, free.project(np.random.default_rng(0).normal(size=n)))


@pytest.mark.parametrize("name", ["slab", "periodic", "open, large"])
def test_soft_mode_without_a_force_is_refused(
    model: Model, name: str, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Charges at zero may be a maximum of the energy: only looking for the softest transfer tells."""
    monkeypatch.setattr(coulomb, "PER_DIRECT_PAIR", np.inf)  # a mesh for open structures too
    structure = sodium_alone(name, helpers)
    n = len(structure)
    neighbours, electrostatics = NeighbourList(), Electrostatics(np.array([1.1]), np.array([0.0]), 1e-5)
    neighbours.update(structure, max(electrostatics.cutoff(structure), RADIUS))
    bare = electrostatics.at(swapped(structure, neighbours.order), np.zeros(n, dtype=np.int64), neighbours)
    own = softest(bare.apply, n)
    assert own > 0.1  # without hardness: far from zero, and every equal hardness adds to all eigenvalues
    inverse = SparseInverse(neighbours, RADIUS, bare.gaussian_width, bare.hardness, 1)
    for margin, match in ((0.02, None), (0.005, "softest charge transfer must cost at least 0.01 eV"), (-0.02, "har")):
        shift = margin - own

        def apply(x: np.ndarray, shift: float = shift) -> np.ndarray:
            return bare.apply(x) + shift * x

        potential = Potential(with_hardness(model, shift, 8.0))
        if match is None:
            search(apply, inverse.apply, n)
            assert np.isfinite(potential.compute(structure).energy)
        else:
            with pytest.raises(ChargeError, match=match):
                search(apply, inverse.apply, n)
            with pytest.raises(ChargeError, match="`hardness` is too"):
                potential.compute(structure)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_hardness_zero_is_fine(model: Model, name: str, helpers: Any) -> None:
    structure = placed(name, helpers, rattle=0.1)
    got = Potential(with_hardness(model, 0.0, 0.0)).compute(structure)
    assert abs(got.charges.sum()) < 1e-10  # rounding of some hundred charges
    assert np.abs(got.charges).max() > 0.1


def test_stiff_structures_are_not_searched(monkeypatch: pytest.MonkeyPatch, model: Model, helpers: Any) -> None:
    """The search costs as much as some solutions: where every hardness is above 0.1 eV/e^2 it can find nothing."""
    calls: list[int] = []
    monkeypatch.setattr("kqeq_md.charges.equilibrate.check_stability", lambda *args: calls.append(1))
    Potential(model).compute(placed("periodic", helpers))
    assert not calls
    soft = Potential(with_hardness(model, 0.0, 8.0))
    for _ in range(3):
        soft.compute(placed("periodic", helpers))
    assert len(calls) == 1  # once for each neighbour list


def test_stability_may_be_lost_on_the_way(model: Model, helpers: Any) -> None:
    """A crystal that is compressed by 0.2 % in each step: Gaussians overlap until charge flows freely."""
    potential = Potential(with_hardness(model, -0.15, 8.0))
    still = sodium_alone("periodic", helpers)
    rattled = helpers.moved(still, still.positions + 1e-3 * np.random.default_rng(0).normal(size=(64, 3)))
    frames = [helpers.strained(rattled, (1 - 0.002 * step) * np.eye(3)) for step in range(23)]
    for early in frames[:15]:
        potential.compute(early, want=())
    with pytest.raises(ChargeError, match="`hardness` is too"):  # J is indefinite from the twentieth on
        [potential.compute(late, want=()) for late in frames[15:]]


@pytest.mark.parametrize("name", BOUNDARIES)
def test_fragments_that_cannot_exchange_may_be_soft(model: Model, name: str, helpers: Any) -> None:
    structure, soft = placed(name, helpers), with_hardness(model, -30.0, -30.0)
    charges = np.where(structure.numbers == 11, 1.0, -1.0)
    frozen = Potential(soft, charges="fragments", fragments=np.arange(len(structure)), fragment_charges=charges)
    np.testing.assert_array_equal(frozen.compute(structure).charges, charges)


def test_softest_transfer_that_is_accepted() -> None:
    with pytest.raises(ChargeError, match="not positive definite"):
        search(lambda x: -x, lambda x: x, 8)
    assert SOFTEST == 0.01
    search(lambda x: 1.01 * SOFTEST * x, lambda x: x, 8)
    with pytest.raises(ChargeError, match="must cost at least 0.01 eV/e\\^2, got 0.0099"):
        search(lambda x: 0.99 * SOFTEST * x, lambda x: x, 8)


# --- the whole potential does not depend on what it has seen


def frame(kind: str, t: float, helpers: Any, **kwargs: Any) -> Structure:
    """Time t of a smooth trajectory; 0.05 A for each unit of time."""
    size = {"open, small": 1, "slab": 2, "periodic": 2}.get(kind, 4)
    solid = helpers.rock_salt(size, rattle=0.2)
    rng = np.random.default_rng(9)
    amplitude, phase = rng.uniform(0, 0.3, solid.positions.shape), rng.uniform(0, 2 * np.pi, solid.positions.shape)
    positions = solid.positions + amplitude * np.sin(0.3 * t + phase)
    pbc = {"slab": SLAB, "periodic": True}.get(kind, False)
    return Structure(solid.numbers, positions, cell=solid.cell, pbc=pbc, **kwargs)


def scale_of(potential: Potential, structure: Structure) -> float:
    """|P (chi - F.R)| + |J_ii Q / n|, eV/e: what the tolerance is relative to."""
    model = potential.model
    species = potential.species_index(structure.numbers)
    local = LocalPart(LocalKernels(model), species, find_pairs(structure, model.cutoff))
    linear = local.electronegativity - structure.positions @ structure.field
    diagonal = self_interaction(model.hardness[species], model.gaussian_width[species])
    return residual_scale(linear, diagonal, total_charge(len(structure), structure.charge))


FORCE_PER_CHARGE = 3.0
"""eV/A for an error of 1 e (norm over all atoms) of the charges: neighbouring ions and dchi/dR. Measured 0.4 to 0.9."""


def agree(used: Potential, structure: Structure, **charges: Any) -> Result:
    """The next result is that of a new potential (with the same `charges`), within what the tolerance promises.

    Residuals r of both, below tolerance * scale, leave errors |dq| <= |r| / hardness of at least 6 eV/e^2 in the
    charges (J is the hardness and a Coulomb repulsion without negative eigenvalues), and half of |r| |dq| in energies.
    """
    got = used.compute(structure)
    new = Potential(used.model, used.accuracy, used.tolerance, **charges).compute(structure)
    residual = 2.0 * used.tolerance * scale_of(used, structure)
    error = residual / used.model.hardness.min()
    # rounding beside it: 1e-11 of charges and forces, sums of 1e3 eV
    assert np.linalg.norm(got.charges - new.charges) < error + 1e-11
    assert abs(got.energy - new.energy) < 0.5 * residual * error + 1e-9
    for name in ("forces", "virial", "energies"):
        a, b = getattr(got, name), getattr(new, name)
        reach = np.ptp(structure.positions) if name == "virial" else 1.0  # A: a virial is forces times positions
        np.testing.assert_allclose(a, b, rtol=0, atol=FORCE_PER_CHARGE * reach * error + 1e-9, err_msg=name)
    assert got.charges.sum() == pytest.approx(structure.charge, abs=1e-10)  # rounding of some hundred charges
    return got


KINDS = ["open, small", "open, direct", "open, mesh", "slab", "periodic"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to solve; the mesh for open structures of 512 atoms, which are summed faster directly."""
    if request.param != "open, small":
        monkeypatch.setattr(coulomb, "PER_DIRECT_PAIR", np.inf if request.param == "open, mesh" else 0.0)
    return str(request.param)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-5, 1e-8])
def test_trajectory_ends_where_a_fresh_start_does(strong: Model, kind: str, tolerance: float, helpers: Any) -> None:
    used = Potential(strong, tolerance=tolerance)
    for t in range(30):
        used.compute(frame(kind, t, helpers), want=("forces",))
    agree(used, frame(kind, 30, helpers))


@pytest.mark.parametrize("kind", ["open, direct", "periodic"])
def test_order_of_atoms_may_change(strong: Model, kind: str, helpers: Any) -> None:
    used, rng = Potential(strong, tolerance=1e-8), np.random.default_rng(1)
    for t in range(3):
        here = frame(kind, t, helpers)
        agree(used, here)
        agree(used, swapped(here, rng.permutation(len(here))))
        alike = np.arange(len(here))
        alike[:2] = 1, 0  # two atoms of one element: nothing but positions tells
        agree(used, swapped(here, alike))


def test_structures_may_alternate(strong: Model, helpers: Any) -> None:
    used = Potential(strong, tolerance=1e-8)
    for t in range(3):
        for kind in ("periodic", "open, small", "slab", "periodic"):
            agree(used, frame(kind, t, helpers))
        other = helpers.rock_salt(2, rattle=0.4, seed=t)  # the same atoms elsewhere
        agree(used, other)
    one = Structure([17], [[0.0, 0.0, 0.0]], charge=-1.0)
    assert agree(used, one).charges.tolist() == [-1.0]


def test_settings_may_change(strong: Model, helpers: Any) -> None:
    held = {"charges": "fragments", "fragments": [[0, 1, 2], [10, 40]], "fragment_charges": [0.3, -0.6]}
    free, fragments = Potential(strong, tolerance=1e-8), Potential(strong, tolerance=1e-8, **held)
    seen = []
    for kind, charge, field, constrained in (
        ("slab", 0.0, 0.0, False),
        ("slab", 1.0, 0.0, False),
        ("slab", 1.0, 0.1, False),
        ("slab", 1.0, 0.1, True),
        ("slab", 0.0, 0.1, True),
        ("slab", 0.0, -0.1, True),
        ("periodic", 0.0, 0.0, True),
        ("periodic", 1.0, 0.0, True),
        ("periodic", 1.0, 0.0, False),
        ("slab", 0.0, 0.0, False),
    ):
        structure = frame(kind, 0, helpers, charge=charge, field=(0, 0, field))
        got = agree(fragments, structure, **held) if constrained else agree(free, structure)
        seen.append(got.energy)
    assert seen[-1] == pytest.approx(seen[0], abs=1e-9)
    assert len(np.unique(np.round(seen, 3))) == len(seen) - 1  # each setting counts


@pytest.mark.parametrize("tolerance", [1e-5, 1e-12])
@pytest.mark.parametrize("repeats", [1, 2, 3, 6])
def test_field_may_change_after_standing_still(strong: Model, repeats: int, tolerance: float, helpers: Any) -> None:
    used = Potential(strong, tolerance=tolerance)
    for field in (0.0, 0.08, 0.0, -0.08, 0.02):
        for shift in range(repeats):
            here = frame("slab", 0, helpers, field=(0, 0, field))
            agree(used, helpers.moved(here, here.positions + here.cell[0] * shift))  # equal to rounding


@pytest.mark.parametrize("kind", ["slab", "periodic"])
def test_atoms_may_be_wrapped_anew(strong: Model, kind: str, helpers: Any) -> None:
    used, rng = Potential(strong, tolerance=1e-8), np.random.default_rng(2)
    for t in range(4):
        here = frame(kind, t, helpers)
        got = agree(used, here)
        integers = rng.integers(-3, 4, size=(64, 3)) * here.pbc
        scattered = agree(used, helpers.moved(here, here.positions + integers @ here.cell))
        assert scattered.energy == pytest.approx(got.energy, abs=1e-9)  # tolerance in second order, and rounding


@pytest.mark.parametrize("kind", ["slab", "periodic"])
def test_cell_may_shrink(strong: Model, kind: str, helpers: Any) -> None:
    """By 2 % in each step, sheared as it does, down to two thirds."""
    used = Potential(strong, tolerance=1e-8)
    deform = 0.98 * np.eye(3) + np.array([[0, 0.01, 0], [0, 0, 0], [0, 0, 0]])
    now = frame(kind, 0, helpers)
    for step in range(20):
        now = helpers.strained(now, deform)
        if step % 4 == 0:
            agree(used, now)
        else:
            used.compute(now)
    agree(used, now)


def test_atoms_that_leave_and_come_back(strong: Model, helpers: Any) -> None:
    """Far beyond the skin within one step, out of an open cluster."""
    used = Potential(strong, tolerance=1e-8)
    here = frame("open, direct", 0, helpers)
    first = agree(used, here)
    away = here.positions.copy()
    away[3] += 200.0
    agree(used, helpers.moved(here, away))
    assert agree(used, here).energy == pytest.approx(first.energy, abs=1e-9)  # as for wrapped atoms


def test_a_refused_structure_leaves_no_trace(strong: Model, helpers: Any) -> None:
    used = Potential(strong, tolerance=1e-8)
    here = frame("periodic", 0, helpers)
    agree(used, here)
    touching = here.positions.copy()
    touching[1] = touching[0] + 0.01
    with pytest.raises(StructureError, match="overlap"):
        used.compute(helpers.moved(here, touching))
    with pytest.raises(FieldError, match="`field` must be zero along periodic axes"):
        used.compute(replace(here, field=[0.0, 0.1, 0.0]))
    agree(used, here)
    held = {"charges": "fragments", "fragments": np.arange(64) // 32, "fragment_charges": [0.5, -0.5]}
    used = Potential(strong, tolerance=1e-8, **held)
    agree(used, here, **held)
    with pytest.raises(ChargeError, match="`fragment_charges` must add up to the total charge 1, got 0"):
        used.compute(replace(here, charge=1.0))
    with pytest.raises(ChargeError, match="`fragments` must be a whole number for each of 8 atoms, got 64"):
        used.compute(helpers.cluster())
    agree(used, here, **held)


def test_following_steps_take_fewer_iterations(strong: Model, iterations: list[int], helpers: Any) -> None:
    """What is remembered is of use: else all tests above would pass without it."""
    used = Potential(strong)
    for t in range(20):
        used.compute(frame("periodic", 0.3 * t, helpers), want=())
    assert max(iterations[10:]) <= 0.6 * iterations[0]  # measured: 2 or 3 after 6


@pytest.mark.parametrize("tolerance", [1e-5, 1e-8, 1e-12])
def test_a_bad_guess_costs_little(strong: Model, tolerance: float, iterations: list[int], helpers: Any) -> None:
    """Equal charges some times, then another field: the noise between equal steps is no direction to go on with."""
    used = Potential(strong, tolerance=tolerance)
    for field in (0.0, 0.0, 0.0, 0.08, 0.08):
        here = frame("slab", 0, helpers, field=(0, 0, field))
        used.compute(helpers.moved(here, here.positions + len(iterations) * here.cell[0]), want=())
    assert iterations[3] <= iterations[0]  # from the charges without field
    assert iterations[4] <= iterations[0] + 1  # from whatever the step to those in it leads to, or from nothing


@pytest.mark.parametrize("value", [0, 0.0, -1e-5, 1e-3, 1.01e-4, 1e-15, np.nan, np.inf, "a", None, True])
def test_tolerance_out_of_range_is_refused(model: Model, value: Any) -> None:
    with pytest.raises(KqeqError, match="`tolerance` must lie between 1e-14 and 0.0001, got"):
        Potential(model, tolerance=value)


@pytest.mark.parametrize("value", [1e-4, 1e-14, 1e-5])
def test_tolerance_in_range(model: Model, value: float) -> None:
    assert Potential(model, tolerance=value).tolerance == value
    assert Potential(model).tolerance == 1e-5


# --- many atoms: corrections with a rough operator


def many_atoms(
    helpers: Any, boundary: str, seed: int = 0
) -> tuple[Structure, np.ndarray, NeighbourList, Electrostatics]:
    """1,000 atoms of rattled rock salt (five cells each way), their elements, neighbours and electrostatics."""
    whole = helpers.rock_salt(cells=5, rattle=0.2, seed=seed)
    pbc = {"periodic": (True, True, True), "slab": (True, True, False), "open": (False, False, False)}[boundary]
    structure = Structure(whole.numbers, whole.positions, cell=whole.cell if any(pbc) else None, pbc=pbc)
    electrostatics = Electrostatics(np.array([1.1, 0.8]), np.array([6.0, 8.0]), 1e-5)
    neighbours = NeighbourList()
    neighbours.update(structure, max(electrostatics.cutoff(structure), RADIUS))
    order = neighbours.order
    ordered = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
    return ordered, (ordered.numbers == 17).astype(np.int64), neighbours, electrostatics


@pytest.mark.parametrize("boundary", ["periodic", "slab", "open"])
def test_rough_products_are_as_good_as_said(helpers: Any, boundary: str) -> None:
    """For charges at random, of ions, of long waves: symmetric, positive, and wrong by less than `roughness`."""
    structure, species, neighbours, electrostatics = many_atoms(helpers, boundary)
    operator = electrostatics.at(structure, species, neighbours)
    assert 0.0 < operator.roughness < 0.01
    draw = np.random.default_rng(1).normal(size=(2, 1000))
    for q in (*draw, species - 0.5, np.sin(structure.positions @ [0.22, 0.0, 0.0]), np.ones(1000)):
        q = q - (0.0 if q.all() and np.ptp(q) == 0.0 else q.mean())
        exact, rough = operator.apply(q), operator.apply_roughly(q)
        assert np.linalg.norm(rough - exact) < operator.roughness * np.linalg.norm(exact)
        assert (
            q @ rough > 0.0 or boundary == "slab"
        )  # a net charge lowers the energy of a slab by its zero of potential
    forth, back = draw[0] @ operator.apply_roughly(draw[1]), draw[1] @ operator.apply_roughly(draw[0])
    assert forth == pytest.approx(back, rel=1e-12)  # rounding


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-10])
@pytest.mark.parametrize("boundary", ["periodic", "slab", "open"])
def test_refined_charges_solve_the_exact_equations(helpers: Any, boundary: str, tolerance: float) -> None:
    """From nothing, from a good guess and from a bad one; with the sums of two fragments."""
    structure, species, neighbours, electrostatics = many_atoms(helpers, boundary)
    operator = electrostatics.at(structure, species, neighbours)
    inverse = SparseInverse(neighbours, RADIUS, operator.gaussian_width, operator.hardness, threads=1)
    chi = np.where(species == 1, 8.0, 3.0) + 0.3 * np.random.default_rng(2).normal(size=1000)
    constraint = fragment_charges(1000, 1.0, [np.arange(300), np.arange(300, 1000)], [2.0, -1.0])
    scale = residual_scale(chi, operator.hardness, constraint)
    exact = conjugate_gradient(operator.apply, inverse.apply, chi, constraint, np.zeros(1000), scale, 1e-12).charges
    noise = np.random.default_rng(3).normal(size=1000)
    for start in (np.zeros(1000), exact + 1e-4 * noise, 1e3 * noise):
        found = refined_conjugate_gradient(operator, inverse.apply, chi, constraint, start, scale, tolerance)
        residual = constraint.project(operator.apply(found.charges) + chi)
        assert np.linalg.norm(residual) <= 1.001 * tolerance * scale  # what is estimated of it errs on the safe side
        assert constraint.enforce(found.charges) == pytest.approx(found.charges, abs=1e-12)  # rounding
        # J x of the last correction is taken from the rough operator: half of the tolerated residual at most
        assert np.linalg.norm(found.induced - operator.apply(found.charges)) <= 0.5 * tolerance * scale


def test_a_rough_operator_that_does_not_help_is_left(helpers: Any) -> None:
    """Corrections of a tenth of their size never halve the residual; the exact operator goes on alone."""
    structure, species, neighbours, electrostatics = many_atoms(helpers, "periodic")
    exact = electrostatics.at(structure, species, neighbours)

    class Stiff:
        """Ten times stiffer than it should be, and said to be good."""

        roughness, apply = 5e-3, staticmethod(exact.apply)

        @staticmethod
        def apply_roughly(q: np.ndarray) -> np.ndarray:
            return 10.0 * exact.apply(q)

    chi, constraint = np.where(species == 1, 8.0, 3.0), total_charge(1000, 0.0)
    scale = residual_scale(chi, exact.hardness, constraint)
    found = refined_conjugate_gradient(Stiff(), lambda x: x, chi, constraint, np.zeros(1000), scale, 1e-8)
    assert np.linalg.norm(constraint.project(exact.apply(found.charges) + chi)) <= 1e-8 * scale
