"""Radial functions of the smeared neighbour density as tables of values and derivatives.

A neighbour at distance r adds a Gaussian of width sigma to the density of its centre. Its projection on the
orthonormal radial basis g_n and the real spherical harmonic Y_lm is R_nl(r) Y_lm(r), with

    R_nl(r) = 4 pi int_0^Q dq q^2 g_n(q) exp(-(q^2 + r^2) / 2 sigma^2) i_l(q r / sigma^2)

(i_l: modified spherical Bessel function; Q = cutoff + 5 sigma, the range on which the basis is orthonormal).
Tabulated is f_nl(r) = s(r) u(r) R_nl(r) / r^l, which is smooth at r = 0 and multiplies solid harmonics; s switches off
at the cutoff and u scales distant neighbours down.

References: Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013), doi:10.1103/PhysRevB.87.184115;
radial scaling: Willatt, Musil, Ceriotti, PCCP 20, 29661 (2018), doi:10.1039/C8CP05921G.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import factorial2, ive

from kqeq_md.errors import ConfigError
from kqeq_md.structure import Floats
from kqeq_md.switch import switch

SPACING = 0.005
"""Largest distance of two knots, Angstrom: cubic Hermite interpolation is then good to 1e-10 of the maximum."""

QUADRATURE_POINTS = 400

LARGEST_N_MAX = 16
"""More radial functions overlap so much that rounding spoils their orthonormality (1e-7 at 16, 1e-4 at 20)."""


@dataclass(frozen=True)
class SoapParameters:
    """Hyperparameters of the power spectrum.

    Attributes:
        cutoff: neighbours further away are not seen, Angstrom.
        cutoff_width: the density of a neighbour is switched off over this distance below the cutoff, Angstrom.
        n_max: number of radial functions per element.
        l_max: largest angular momentum.
        sigma: width of the Gaussian that smears each atom, Angstrom.
        radial_scale: r0 of u(r) = 1 / (1 + (r / r0)^m), Angstrom; 0 leaves the density unscaled.
        radial_exponent: m of the same, even.
    """

    cutoff: float = 5.0
    cutoff_width: float = 1.0
    n_max: int = 6
    l_max: int = 4
    sigma: float = 0.5
    radial_scale: float = 0.0
    radial_exponent: int = 4

    def __post_init__(self) -> None:
        bounds = {
            "cutoff": (0.5, 30.0), "cutoff_width": (0.01, 30.0), "sigma": (0.05, 5.0), "n_max": (1, LARGEST_N_MAX),
            "l_max": (0, 20), "radial_scale": (0.0, 1e3), "radial_exponent": (2, 20),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"`{name}` must lie between {low} and {high}, got {getattr(self, name)}")
        for name in ("n_max", "l_max", "radial_exponent"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ConfigError(f"`{name}` must be a whole number, got {getattr(self, name)}")
        if self.cutoff_width > self.cutoff:
            raise ConfigError(f"`cutoff_width` must not exceed the cutoff {self.cutoff}, got {self.cutoff_width}")
        if self.radial_exponent % 2:
            raise ConfigError(f"`radial_exponent` must be even, got {self.radial_exponent}")


@dataclass(frozen=True)
class RadialTable:
    """Hermite table of f_nl.

    Attributes:
        start: position of the first knot, Angstrom (at most 0, so that a knot lies on the cutoff).
        spacing: distance of two knots, Angstrom.
        values: f_nl and df_nl/dr at the knots, shape (n_knots, 2, l_max + 1, n_max).
    """

    start: float
    spacing: float
    values: Floats


def _radial_scaling(r: Floats, parameters: SoapParameters) -> tuple[Floats, Floats]:
    """u(r) = 1 / (1 + (r / r0)^m) and its derivative; 1 and 0 where r0 is 0."""
    r0, m = parameters.radial_scale, parameters.radial_exponent
    if r0 == 0:
        return np.ones_like(r), np.zeros_like(r)
    u = 1.0 / (1.0 + (r / r0) ** m)
    return u, -(u**2) * m * (r / r0) ** (m - 1) / r0


def _orthonormal_gto(q: Floats, weights: Floats, parameters: SoapParameters) -> Floats:
    """Symmetrically orthonormalised q^n exp(-q^2 / 2 s_n^2), s_n = cutoff max(sqrt(n), 1) / n_max; (n_max, q)."""
    n = np.arange(parameters.n_max)[:, None]
    width = parameters.cutoff * np.maximum(np.sqrt(n), 1.0) / parameters.n_max
    g = q**n * np.exp(-0.5 * (q / width) ** 2)
    g /= np.sqrt(g**2 @ (weights * q**2))[:, None]
    eigenvalues, vectors = np.linalg.eigh((g * weights * q**2) @ g.T)
    inverse_root: Floats = (vectors / np.sqrt(eigenvalues)) @ vectors.T @ g
    return inverse_root


def _scaled_bessel(l_max: int, x: Floats) -> list[Floats]:
    """exp(-x) i_l(x) / x^l for l = 0 ... l_max, exact to rounding also at x = 0."""
    small = x < 1e-3
    y = np.where(small, 1.0, x)
    out = []
    for degree in range(l_max + 1):
        series = np.exp(-x) / factorial2(2 * degree + 1) * (1.0 + x**2 / (2 * (2 * degree + 3)))
        out.append(np.where(small, series, np.sqrt(np.pi / 2) * ive(degree + 0.5, y) / y ** (degree + 0.5)))
    return out


@lru_cache
def radial_table(parameters: SoapParameters) -> RadialTable:
    """Tabulate f_nl(r) = s(r) u(r) R_nl(r) / r^l and its derivative by Gauss-Legendre quadrature over q."""
    p = parameters
    spacing = p.cutoff_width / np.ceil(p.cutoff_width / SPACING)
    below = int(np.ceil(p.cutoff / spacing - 1e-9))  # so that knots lie on the cutoff and where the switch begins
    knots = p.cutoff + spacing * np.arange(-below, 2)
    r, sign = np.abs(knots), np.sign(knots)
    x, w = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    q_max = p.cutoff + 5.0 * p.sigma
    q, w = 0.5 * q_max * (x + 1.0), 0.5 * q_max * w
    basis = 4.0 * np.pi * _orthonormal_gto(q, w, p) * w * q**2
    gaussian = np.exp(-0.5 * ((q - r[:, None]) / p.sigma) ** 2)
    argument = q * r[:, None] / p.sigma**2
    bessel = _scaled_bessel(p.l_max + 1, argument)
    s, ds = switch(r, p.cutoff - p.cutoff_width, p.cutoff)
    u, du = _radial_scaling(r, p)
    envelope, slope = (s * u)[:, None], (ds * u + s * du)[:, None]
    values = np.empty((len(knots), 2, p.l_max + 1, p.n_max))
    for degree in range(p.l_max + 1):
        power = (q / p.sigma**2) ** degree * gaussian
        f = (power * bessel[degree]) @ basis.T
        # d/dr of exp(-(q^2 + r^2) / 2 sigma^2) i_l(x) / x^l with d/dx (i_l / x^l) = i_(l+1) / x^l
        df = (
            power * (q / p.sigma**2 * argument * bessel[degree + 1] - r[:, None] / p.sigma**2 * bessel[degree])
        ) @ basis.T
        values[:, 0, degree] = envelope * f
        values[:, 1, degree] = (slope * f + envelope * df) * sign[:, None]
    return RadialTable(float(knots[0]), float(spacing), values)
