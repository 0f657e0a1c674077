"""Sparse kernels against loops, their reverse, and the forms of low rank that stand for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kqeq_md.kernel import (
    SparseKernel,
    eigenpoints,
    fewest_points,
    low_rank,
    power,
    sparse_kernel,
    weighted_powers,
    weighted_powers_vjp,
)

ZETAS = [1.0, 2.0, 2.5, 3.0, 4.0, 7.0]


def unit_vectors(m: int, size: int, seed: int = 8) -> np.ndarray:
    """Of one hyperoctant, as power spectra are near each other; shape (m, size)."""
    vectors = np.abs(np.random.default_rng(seed).normal(size=(m, size)))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_kernel(sizes: tuple[int, ...], columns: int, size: int = 12) -> SparseKernel:
    rng = np.random.default_rng(9)
    points = tuple(unit_vectors(m, size, seed) for seed, m in enumerate(sizes))
    return SparseKernel(points, tuple(rng.normal(size=(m, columns)) for m in sizes))


def value(kernel: SparseKernel, element: int, unit: np.ndarray, zeta: float = 2.0) -> np.ndarray:
    """y of unit vectors (n, size), shape (columns, n)."""
    return weighted_powers(kernel.points[element] @ unit.T, kernel.weights[element], zeta)


# --- exact


@pytest.mark.parametrize("lanes", [1, 3, 16, 64, 100])
@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("zeta", ZETAS)
def test_weighted_powers(zeta: float, columns: int, lanes: int) -> None:
    rng = np.random.default_rng(10)
    overlap, weights = rng.uniform(0, 1, size=(9, lanes)), rng.normal(size=(9, columns))
    # nine terms of order 1, powers by repeated multiplication: some roundings
    np.testing.assert_allclose(weighted_powers(overlap, weights, zeta), weights.T @ overlap**zeta, atol=1e-14)
    grad_y = rng.normal(size=(columns, lanes))
    wanted = zeta * overlap ** (zeta - 1) * (weights @ grad_y)
    np.testing.assert_allclose(weighted_powers_vjp(overlap, weights, zeta, grad_y), wanted, atol=1e-13)


@pytest.mark.parametrize("zeta", ZETAS)
def test_reverse(zeta: float, helpers: Any) -> None:
    rng = np.random.default_rng(11)
    overlap, weights, grad_y = rng.uniform(0.1, 1, size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=(2, 3))
    wanted = helpers.five_point(lambda o: float((grad_y * weighted_powers(o, weights, zeta)).sum()), overlap, 1e-3)
    # 1e-3^4 f^(5) / 30 with f^(5) up to 7! / 2: 1e-10
    np.testing.assert_allclose(weighted_powers_vjp(overlap, weights, zeta, grad_y), wanted, atol=1e-9)


def test_no_sparse_points() -> None:
    assert weighted_powers(np.empty((0, 4)), np.empty((0, 2)), 2.0).tolist() == [[0.0] * 4] * 2
    assert weighted_powers_vjp(np.empty((0, 4)), np.empty((0, 2)), 2.0, np.ones((2, 4))).shape == (0, 4)


def test_overlaps_below_zero() -> None:
    """They are rounding of a zero for power spectra, but not for the eigenvectors of a low rank."""
    assert power(-1e-17, 2.5) == 0.0
    assert power(-0.5, 2.0) == 0.25
    assert power(-0.5, 3.0) == -0.125
    assert power(0.0, 0.0) == 1.0
    overlap, weights = np.array([[-1e-17, -0.5]]), np.ones((1, 1))
    assert weighted_powers(overlap, weights, 2.5).tolist() == [[0.0, 0.0]]
    np.testing.assert_allclose(weighted_powers_vjp(overlap, weights, 2.0, np.ones((1, 2))), [[-2e-17, -1.0]], rtol=0)


def test_a_sparse_point_is_one_with_itself() -> None:
    points = unit_vectors(5, 7)
    k = sparse_kernel(points, points, 2)
    np.testing.assert_allclose(np.diag(k), 1.0, rtol=1e-14)  # norms to rounding
    assert (k <= 1.0 + 1e-14).all()


@pytest.mark.parametrize("zeta", [1.0, 2.0, 2.5])
def test_kernel_matrix_gives_the_same(zeta: float) -> None:
    kernel, unit = random_kernel((6,), 2), unit_vectors(4, 12, 77)
    matrix = sparse_kernel(unit, kernel.points[0], zeta)
    np.testing.assert_allclose(value(kernel, 0, unit, zeta), (matrix @ kernel.weights[0]).T, atol=1e-14)  # six terms


# --- eigenvectors in place of sparse points


@pytest.mark.parametrize("typical", [False, True])
@pytest.mark.parametrize("m", [1, 5, 12, 40])
def test_eigenpoints(m: int, typical: bool) -> None:
    """Fewer, as many and more sparse points than the power spectrum has entries."""
    points, weights, unit = unit_vectors(m, 12), np.random.default_rng(1).normal(size=m), unit_vectors(30, 12, 77)
    b, values = eigenpoints(points, weights, typical)
    assert len(values) <= min(m, 12)
    assert (np.diff(np.abs(values)) <= 0).all()
    # rounding of 40 terms of order 1
    np.testing.assert_allclose(values @ (b @ unit.T) ** 2, weights @ (points @ unit.T) ** 2, atol=1e-12)
    metric = (b @ points.T) @ (points @ b.T) / m if typical else b @ b.T
    np.testing.assert_allclose(metric, np.eye(len(b)), atol=1e-12)


def test_values_are_what_terms_contribute_at_most() -> None:
    b, values = eigenpoints(unit_vectors(40, 12), np.random.default_rng(1).normal(size=40), typical=False)
    without = np.abs(values * (b @ unit_vectors(500, 12, 77).T).T ** 2)
    assert (without <= np.abs(values)).all()


def test_sparse_points_that_depend_on_each_other() -> None:
    """Twice the same points, and weights that cancel."""
    points, weights = unit_vectors(5, 12), np.arange(1.0, 6.0)
    b, values = eigenpoints(np.vstack([points, points]), np.concatenate([weights, weights]), typical=False)
    assert len(values) == 5
    unit = unit_vectors(30, 12, 77)
    np.testing.assert_allclose(values @ (b @ unit.T) ** 2, 2 * weights @ (points @ unit.T) ** 2, rtol=1e-12)  # 10 terms
    for typical in (False, True):
        cancelled = eigenpoints(np.vstack([points, points]), np.concatenate([weights, -weights]), typical)
        assert np.abs(cancelled[1] @ (cancelled[0] @ unit.T) ** 2).max() < 1e-13  # rounding of weights up to 5


@pytest.mark.parametrize("sizes", [(40,), (40, 7, 1), (0, 30), (30, 0)])
def test_fewest_points(sizes: tuple[int, ...]) -> None:
    kernel, unit = random_kernel(sizes, 1), unit_vectors(30, 12, 77)
    fewest = fewest_points(kernel)
    assert [len(points) for points in fewest.points] == [min(m, 12) for m in sizes]
    for element in range(len(sizes)):
        assert fewest.weights[element].shape == (len(fewest.points[element]), 1)
        # rounding of 40 terms of order 1
        np.testing.assert_allclose(value(fewest, element, unit), value(kernel, element, unit), rtol=0, atol=1e-12)


def test_weights_of_nothing() -> None:
    kernel = SparseKernel((unit_vectors(6, 12),), (np.zeros((6, 1)),))
    for other in (fewest_points(kernel), low_rank(kernel, 3)):
        assert other.points[0].shape == (0, 12)
        assert other.weights[0].shape == (0, 1)


# --- low rank


@pytest.mark.parametrize("sizes", [(40,), (40, 7, 1), (0, 30), (30, 0), (0, 0)])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_full_rank_is_exact(columns: int, sizes: tuple[int, ...]) -> None:
    kernel, unit = random_kernel(sizes, columns), unit_vectors(30, 12, 77)
    full = low_rank(kernel, 12 * columns)
    for element, m in enumerate(sizes):
        assert full.points[element].shape == (min(m, 12) * columns, 12)
        assert full.weights[element].shape == (min(m, 12) * columns, columns)
        # rounding of 40 terms of order 1
        np.testing.assert_allclose(value(full, element, unit), value(kernel, element, unit), rtol=0, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_error_falls_with_the_rank(columns: int) -> None:
    """Measured at the sparse points themselves: there all columns of all terms are orthonormal in the mean."""
    kernel = random_kernel((40, 25), columns)
    errors = []
    for rank in range(0, 12 * columns + 1, 3):
        approximate = low_rank(kernel, rank)
        assert sum(len(points) for points in approximate.points) == 2 * rank
        difference = [value(approximate, e, p) - value(kernel, e, p) for e, p in enumerate(kernel.points)]
        errors.append(np.sqrt(sum(np.mean(d**2) for d in difference)))
    assert errors[-1] < 1e-13 * errors[0]  # rounding of 40 terms
    assert (np.diff(errors) < 0).all()
    assert errors[len(errors) // 2] < 0.1 * errors[0]


def test_rank_goes_where_it_is_needed() -> None:
    """Each element and column gets as many as its contributions are large; one term serves one column."""
    plain = random_kernel((40, 25), 2)
    weights = (plain.weights[0] * [1.0, 1e-6], plain.weights[1] * 1e-6)
    kept = low_rank(SparseKernel(plain.points, weights), 6)
    assert [len(points) for points in kept.points] == [12, 0]
    assert (kept.weights[0][:, 0] != 0).all()
    assert not kept.weights[0][:, 1].any()


def test_largest_terms_are_kept() -> None:
    kernel = random_kernel((40,), 1)
    full, kept = low_rank(kernel, 12), low_rank(kernel, 4)
    np.testing.assert_array_equal(kept.points[0], full.points[0][:4])
    np.testing.assert_array_equal(kept.weights[0], full.weights[0][:4])
    assert (np.diff(np.abs(full.weights[0][:, 0])) <= 0).all()
