"""Solid harmonics against SciPy's Legendre functions, orthonormality and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import eval_legendre

from kqeq_md.descriptor.harmonics import normalisation, solid_harmonics, solid_harmonics_vjp

L_MAX = 8
DEGREE = np.repeat(np.arange(L_MAX + 1), 2 * np.arange(L_MAX + 1) + 1)
VECTORS = {
    "general": (0.3, -1.2, 0.7),
    "long": (-4.0, 2.5, 3.1),
    "pole": (0.0, 0.0, 1.7),
    "south pole": (0.0, 0.0, -0.9),
    "equator": (-1.1, 0.4, 0.0),
    "x axis": (2.0, 0.0, 0.0),
    "y axis": (0.0, -1.3, 0.0),
    "short": (1e-5, 2e-5, -3e-5),
}


def harmonics(r: np.ndarray, l_max: int = L_MAX) -> np.ndarray:
    """C_lm and S_lm of vectors (3, n), shape (lm, n)."""
    out = np.full(((l_max + 1) ** 2, r.shape[1]), np.nan)
    solid_harmonics(*r, l_max + 1, out)
    return out


def real_form(r: np.ndarray) -> np.ndarray:
    """r^l Y_lm of vectors (3, n), shape (lm, n)."""
    return normalisation(L_MAX)[:, None] * harmonics(r)


def test_against_legendre_functions(helpers: Any) -> None:
    """All vectors side by side: each fills its own column."""
    r = np.array(list(VECTORS.values())).T
    scale = np.linalg.norm(r, axis=0) ** DEGREE[:, None]
    # eight steps of recursion with coefficients up to 15: some tens of roundings
    np.testing.assert_allclose(real_form(r) / scale, helpers.real_harmonics(L_MAX, r) / scale, atol=1e-13)


@pytest.mark.parametrize("l_max", range(L_MAX))
def test_low_orders_are_the_first_rows(l_max: int) -> None:
    r = np.random.default_rng(1).normal(size=(3, 5))
    np.testing.assert_array_equal(harmonics(r, l_max), harmonics(r)[: (l_max + 1) ** 2])


def test_orthonormal_on_the_sphere() -> None:
    z, weight = np.polynomial.legendre.leggauss(L_MAX + 1)  # exact for the products, of degree 2 l_max
    phi = 2 * np.pi * np.arange(2 * L_MAX + 1) / (2 * L_MAX + 1)
    height, angle = (grid.ravel() for grid in np.meshgrid(z, phi, indexing="ij"))
    rho = np.sqrt(1 - height**2)
    y = real_form(np.stack([rho * np.cos(angle), rho * np.sin(angle), height]))
    overlap = (y * np.repeat(weight, len(phi)) * 2 * np.pi / len(phi)) @ y.T
    np.testing.assert_allclose(overlap, np.eye(len(overlap)), atol=1e-13)  # 153 terms of order 1, rounding


@pytest.mark.parametrize("degree", range(L_MAX + 1))
def test_addition_theorem(degree: int) -> None:
    a, b = np.array([0.3, -1.2, 0.7]), np.array([1.4, 0.2, -0.5])
    of_a, of_b = real_form(np.stack([a, b], axis=1))[degree**2 : (degree + 1) ** 2].T
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    wanted = (2 * degree + 1) / (4 * np.pi) * eval_legendre(degree, a @ b / lengths) * lengths**degree
    # (2 l + 1) products of size lengths^l, each with some tens of roundings
    assert of_a @ of_b == pytest.approx(wanted, abs=1e-13 * lengths**degree)


@pytest.mark.parametrize("l_max", [0, 1, 2, 3, L_MAX])
def test_gradient(l_max: int, helpers: Any) -> None:
    """Of vectors side by side, the origin among them, added to what is there."""
    r = np.array([(0.3, -1.2, 0.7), (0.0, 0.0, 1.7), (-1.1, 0.4, 0.0), (0.0, 0.0, 0.0)]).T
    weights = np.random.default_rng(4).normal(size=((l_max + 1) ** 2, r.shape[1]))
    wanted = helpers.five_point(lambda x: float((weights * harmonics(x, l_max)).sum()), r, 1e-3)
    got = np.full(r.shape, 0.25)
    solid_harmonics_vjp(harmonics(r, l_max), l_max + 1, weights, got)
    # polynomials of degree 8: the fifth derivative is at most some tens, 1e-12 * 30 / 30; rounding 1e-16 / 1e-3
    np.testing.assert_allclose(got - 0.25, wanted, atol=1e-11)
