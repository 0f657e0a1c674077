"""Sparse kernels against a loop, and their reverse by finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kqeq_md.kernel import normalise, normalise_vjp, predict, predict_vjp, sparse_kernel

SPECIES = np.array([1, 0, 1, 1, 0, 1])


@pytest.fixture(scope="module")
def system() -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Power spectra of six atoms and the sparse points and weights of two elements (three and five points)."""
    rng = np.random.default_rng(8)
    points = [normalise(rng.normal(size=(m, 7)))[0] for m in (3, 5)]
    return rng.normal(size=(6, 7)), points, [rng.normal(size=(m, 2)) for m in (3, 5)]


@pytest.mark.parametrize("zeta", [1, 2, 4])
def test_prediction(system: Any, zeta: int) -> None:
    p, points, weights = system
    wanted = np.zeros((6, 2))
    for i, element in enumerate(SPECIES):
        for point, w in zip(points[element], weights[element], strict=True):
            wanted[i] += (p[i] @ point / np.sqrt(p[i] @ p[i])) ** zeta * w
    got = predict(normalise(p)[0], SPECIES, points, weights, zeta)
    np.testing.assert_allclose(got, wanted, atol=1e-14)  # five terms of order 1


@pytest.mark.parametrize("zeta", [1, 2, 4])
def test_reverse(system: Any, zeta: int, helpers: Any) -> None:
    p, points, weights = system
    grad_y = np.random.default_rng(9).normal(size=(6, 2))

    def total(x: np.ndarray) -> float:
        return float((grad_y * predict(normalise(x)[0], SPECIES, points, weights, zeta)).sum())

    unit, length = normalise(p)
    got = normalise_vjp(unit, length, predict_vjp(unit, SPECIES, points, weights, zeta, grad_y))
    # 1e-3^4 f^(5) / 30 with f^(5) of some hundreds: 1e-11
    np.testing.assert_allclose(got, helpers.five_point(total, p, 1e-3), atol=1e-10)


def test_a_sparse_point_is_one_with_itself(system: Any) -> None:
    _, points, _ = system
    k = sparse_kernel(points[1], points[1], 2)
    np.testing.assert_allclose(np.diag(k), 1.0, rtol=1e-14)  # norms to rounding
    assert (k <= 1.0 + 1e-14).all()


def test_length_of_the_power_spectrum_does_not_matter(system: Any) -> None:
    p, points, weights = system
    unit, length = normalise(p)
    gradient = normalise_vjp(unit, length, predict_vjp(unit, SPECIES, points, weights, 2, np.ones((6, 2))))
    np.testing.assert_allclose(np.einsum("nd,nd->n", gradient, p), 0.0, atol=1e-13)  # rounding of seven products


def test_an_element_without_atoms(system: Any) -> None:
    p, points, weights = system
    unit, _ = normalise(p)
    ones = np.ones(6, dtype=np.int64)
    np.testing.assert_allclose(
        predict(unit, ones, points, weights, 2), sparse_kernel(unit, points[1], 2) @ weights[1], rtol=1e-13
    )  # the same sums
