"""Radial bases of the neighbour density: what its values at a few radii contribute to each radial coefficient.

A Gaussian of width sigma at distance r has, along the real spherical harmonic Y_lm, the radial function

    h_l(q; r) = exp(-(q - r)^2 / 2 sigma^2) exp(-x) i_l(x),   x = q r / sigma^2

(i_l: modified spherical Bessel function), up to 4 pi. Every basis here is linear in its values at radii q_g:

    R_nl(r) = sum_g h_l(q_g; r) T_l,gn

so that a basis is nothing but the radii and the projection T. Ours integrates over q; those of QUIP fit h_l at a few
radii, and leave 4 pi out, which the normalised power spectrum does not see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from scipy.linalg import cholesky, solve, solve_triangular
from scipy.special import erf

from kqeq_md.structure import Floats

QUADRATURE_POINTS = 400

QUIP_TAIL = sqrt(2.0 * 10.0 * log(10.0))
"""In units of sigma: QUIP's radial bases end where the Gaussian of a neighbour on the cutoff has fallen to 1e-10."""

QUIP_GTO_END = 1e-3
"""Value of the unnormalised Gaussian-type functions of QUIP at their radius R_n."""


@dataclass(frozen=True)
class RadialBasis:
    """Radii and projection of a radial basis.

    Attributes:
        radii: q_g, Angstrom, shape (n_radii,).
        projection: T_l,gn, shape (l_max + 1, n_radii, n_max).
    """

    radii: Floats
    projection: Floats


def gto(cutoff: float, sigma: float, n_max: int, l_max: int) -> RadialBasis:
    """Orthonormal Gaussian-type functions g_n on the range to cutoff + 5 sigma; T_l,gn = 4 pi w_g q_g^2 g_n(q_g).

    w_g are Gauss-Legendre weights; the same functions serve all l.
    """
    q, w = _quadrature(cutoff + 5.0 * sigma)
    projection = (4.0 * np.pi * _orthonormal_gto(q, w, cutoff, n_max) * w * q**2).T
    return RadialBasis(q, np.broadcast_to(projection, (l_max + 1, *projection.shape)))


def _quadrature(end: float) -> tuple[Floats, Floats]:
    """Points and weights of Gauss-Legendre quadrature from 0 to `end`."""
    x, w = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    return 0.5 * end * (x + 1.0), 0.5 * end * w


def _orthonormal_gto(q: Floats, weights: Floats, cutoff: float, n_max: int) -> Floats:
    """Symmetrically orthonormalised q^n exp(-q^2 / 2 s_n^2), s_n = cutoff max(sqrt(n), 1) / n_max; (n_max, q)."""
    n = np.arange(n_max)[:, None]
    width = cutoff * np.maximum(np.sqrt(n), 1.0) / n_max
    g = q**n * np.exp(-0.5 * (q / width) ** 2)
    g /= np.sqrt(g**2 @ (weights * q**2))[:, None]
    eigenvalues, vectors = np.linalg.eigh((g * weights * q**2) @ g.T)
    inverse_root: Floats = (vectors / np.sqrt(eigenvalues)) @ vectors.T @ g
    return inverse_root


def quip_equispaced_gauss(cutoff: float, sigma: float, n_max: int, l_max: int) -> RadialBasis:
    """QUIP's EQUISPACED_GAUSS: Gaussians of width sigma at n_max equispaced radii q_g.

    Their sum passes through h_l at the q_g: h_l = C a, C_gh = exp(-(q_g - q_h)^2 / 2 sigma^2). With the overlap
    S = L L^T of the Gaussians the coefficients L^T a belong to an orthonormal basis, so that T = C^-1 L for all l.

    Reference: Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013), doi:10.1103/PhysRevB.87.184115.
    """
    q = (cutoff + QUIP_TAIL * sigma) / n_max * np.arange(n_max, dtype=np.float64)
    gaussians = np.exp(-0.5 * ((q[:, None] - q) / sigma) ** 2)
    lower = cholesky(_overlap_of_gaussians(q, sigma), lower=True)
    projection = solve(gaussians, lower, assume_a="pos")
    return RadialBasis(q, np.broadcast_to(projection, (l_max + 1, *projection.shape)))


def _overlap_of_gaussians(q: Floats, sigma: float) -> Floats:
    """int_0^inf dt t^2 exp(-(t - q_g)^2 / 2 sigma^2) exp(-(t - q_h)^2 / 2 sigma^2), shape (n, n).

    Both together are a Gaussian of width sigma / sqrt(2) about their middle m, t^2 = (t - m)^2 + 2 m (t - m) + m^2.
    """
    apart, middle = q[:, None] - q, 0.5 * (q[:, None] + q)
    edge = np.exp(-((middle / sigma) ** 2))
    inside = 0.5 * sqrt(np.pi) * sigma * (1.0 + erf(middle / sigma))
    moments = (middle**2 + 0.5 * sigma**2) * inside + 0.5 * sigma**2 * middle * edge
    out: Floats = np.exp(-0.25 * (apart / sigma) ** 2) * moments
    return out


def quip_gto(cutoff: float, sigma: float, n_max: int, l_max: int) -> RadialBasis:
    """QUIP's GTO: B_n = q^l exp(-a_nl q^2), which is 1e-3 at R_n = n end / n_max, orthonormal on the range to `end`.

    With their overlap S = L L^T the functions X = B L^-T are orthonormal; their sum is fitted to h_l at 3 n_max
    equispaced radii by least squares, T_l = (X^+)^T. L comes from the QR decomposition of w^1/2 q B, because S would
    square the condition of B. QUIP's own rounding shows from n_max = 12 on (3e-9 of p; 2e-4 at n_max = 16).

    Reference: the functions are those of Himanen et al., Comput. Phys. Commun. 247, 106949 (2020),
    doi:10.1016/j.cpc.2019.106949, with QUIP's choice of radii.
    """
    end = cutoff + QUIP_TAIL * sigma
    q = end / (3 * n_max) * np.arange(3 * n_max, dtype=np.float64)
    points, weights = _quadrature(end)
    radius = end / n_max * np.arange(1, n_max + 1)
    projection = np.empty((l_max + 1, len(q), n_max))
    for degree in range(l_max + 1):
        exponent = (degree * np.log(radius) - log(QUIP_GTO_END)) / radius**2
        measured = (np.sqrt(weights) * points)[:, None] * _gaussian_type(points, exponent, degree)
        upper = np.linalg.qr(measured, mode="r")
        upper *= np.sign(np.diag(upper))[:, None]  # the Cholesky factor has a positive diagonal
        orthonormal = solve_triangular(upper, _gaussian_type(q, exponent, degree).T, trans="T")
        projection[degree] = np.linalg.pinv(orthonormal)
    return RadialBasis(q, projection)


def _gaussian_type(q: Floats, exponent: Floats, degree: int) -> Floats:
    """q^l exp(-a_n q^2), shape (len(q), n)."""
    out: Floats = q[:, None] ** degree * np.exp(-exponent * q[:, None] ** 2)
    return out


BASES: dict[str, Callable[[float, float, int, int], RadialBasis]] = {
    "gto": gto,
    "quip_gto": quip_gto,
    "quip_equispaced_gauss": quip_equispaced_gauss,
}
"""The radial bases by the names that models use; arguments cutoff, sigma, n_max, l_max."""
