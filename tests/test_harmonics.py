"""Solid harmonics against SciPy's Legendre functions, orthonormality and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import eval_legendre

from kqeq_md.descriptor.harmonics import normalisation, solid_harmonics, solid_harmonics_vjp

L_MAX = 8
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


def harmonics(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = np.zeros((L_MAX + 1, L_MAX + 1)), np.zeros((L_MAX + 1, L_MAX + 1))
    solid_harmonics(*np.asarray(r, dtype=float), cosine, sine)
    return cosine, sine


def real_form(r: np.ndarray) -> np.ndarray:
    """r^l Y_lm in the order l^2 + l + m: sines below, cosines above m = 0."""
    cosine, sine = (normalisation(L_MAX) * x for x in harmonics(r))
    rows = [[*sine[d, d:0:-1], *cosine[d, : d + 1]] for d in range(L_MAX + 1)]
    return np.concatenate(rows)


@pytest.mark.parametrize("r", VECTORS.values(), ids=VECTORS.keys())
def test_against_legendre_functions(r: tuple[float, float, float], helpers: Any) -> None:
    wanted = helpers.real_harmonics(L_MAX, np.array(r))
    scale = np.linalg.norm(r) ** np.repeat(np.arange(L_MAX + 1), 2 * np.arange(L_MAX + 1) + 1)
    # eight steps of recursion with coefficients up to 15: some tens of roundings
    np.testing.assert_allclose(real_form(np.array(r)) / scale, wanted / scale, atol=1e-13)


def test_orthonormal_on_the_sphere() -> None:
    z, weight = np.polynomial.legendre.leggauss(L_MAX + 1)  # exact for the products, of degree 2 l_max
    phi = 2 * np.pi * np.arange(2 * L_MAX + 1) / (2 * L_MAX + 1)
    overlap = np.zeros(((L_MAX + 1) ** 2,) * 2)
    for height, w in zip(z, weight, strict=True):
        for angle in phi:
            rho = np.sqrt(1 - height**2)
            y = real_form(np.array([rho * np.cos(angle), rho * np.sin(angle), height]))
            overlap += w * 2 * np.pi / len(phi) * np.outer(y, y)
    np.testing.assert_allclose(overlap, np.eye(len(overlap)), atol=1e-13)  # 153 terms of order 1, rounding


@pytest.mark.parametrize("degree", range(L_MAX + 1))
def test_addition_theorem(degree: int) -> None:
    a, b = np.array([0.3, -1.2, 0.7]), np.array([1.4, 0.2, -0.5])
    rows = slice(degree**2, (degree + 1) ** 2)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    wanted = (2 * degree + 1) / (4 * np.pi) * eval_legendre(degree, a @ b / lengths) * lengths**degree
    # (2 l + 1) products of size lengths^l, each with some tens of roundings
    assert real_form(a)[rows] @ real_form(b)[rows] == pytest.approx(wanted, abs=1e-13 * lengths**degree)


@pytest.mark.parametrize("r", [(0.3, -1.2, 0.7), (0.0, 0.0, 1.7), (-1.1, 0.4, 0.0), (0.0, 0.0, 0.0)])
def test_gradient(r: tuple[float, float, float], helpers: Any) -> None:
    rng = np.random.default_rng(4)
    lower = np.tril(np.ones((L_MAX + 1, L_MAX + 1)))
    weight_c, weight_s = lower * rng.normal(size=(2, L_MAX + 1, L_MAX + 1))
    weight_s[:, 0] = 0.0  # S_l0 is zero by definition

    def total(x: np.ndarray) -> float:
        cosine, sine = harmonics(x)
        return float((weight_c * cosine + weight_s * sine).sum())

    wanted = helpers.five_point(total, np.array(r), 1e-3)
    # polynomials of degree 8: the fifth derivative is at most some tens, 1e-12 * 30 / 30; rounding 1e-16 / 1e-3
    np.testing.assert_allclose(solid_harmonics_vjp(*harmonics(np.array(r)), weight_c, weight_s), wanted, atol=1e-11)
