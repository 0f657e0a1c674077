"""Radial functions of the smeared neighbour density as tables of values and derivatives.

A neighbour at distance r adds a Gaussian of width sigma to the density of its centre. Its projection on the radial
basis and the real spherical harmonic Y_lm is R_nl(r) Y_lm(r); for a basis g_n that is orthonormal on the range to Q

    R_nl(r) = 4 pi int_0^Q dq q^2 g_n(q) exp(-(q^2 + r^2) / 2 sigma^2) i_l(q r / sigma^2)

(i_l: modified spherical Bessel function; `basis.py` has the bases). Tabulated is f_nl(r) = s(r) u(r) R_nl(r) / r^l,
which is smooth at r = 0 and multiplies solid harmonics; s switches off at the cutoff and u scales distant neighbours
down.

References: Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013), doi:10.1103/PhysRevB.87.184115;
radial scaling: Willatt, Musil, Ceriotti, PCCP 20, 29661 (2018), doi:10.1039/C8CP05921G.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import factorial2, ive

from kqeq_md.descriptor.basis import BASES, RadialBasis
from kqeq_md.errors import ConfigError
from kqeq_md.structure import Floats
from kqeq_md.switch import cosine_switch, switch

SWITCHES = {"quintic": switch, "cosine": cosine_switch}

SPACING = 0.005
"""Largest distance of two knots, Angstrom, in tables of our own basis, whose models are fitted with the table."""

IMPORTED_SPACING = 0.00125
"""The same for QUIP's bases, where a Gaussian or half of the switch is half an Angstrom wide; proportional to them.

The slope of a cubic Hermite interpolant errs by sqrt(3) / 216 h^3 f^(4), with f^(4) = 3 / sigma^4 of a Gaussian of
width 0.5 Angstrom by 7e-10 f / Angstrom: imported models follow QUIP's virial to 3e-7 eV in 200 atoms.
"""

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
        basis: "gto", or one of QUIP's for its models: "quip_gto", "quip_equispaced_gauss".
        switching: how the density is switched off: "quintic", or "cosine" as QUIP does.
        central_weight: how much the centre counts in its own density.
    """

    cutoff: float = 5.0
    cutoff_width: float = 1.0
    n_max: int = 6
    l_max: int = 4
    sigma: float = 0.5
    radial_scale: float = 0.0
    radial_exponent: int = 4
    basis: str = "gto"
    switching: str = "quintic"
    central_weight: float = 1.0

    def __post_init__(self) -> None:
        bounds = {
            "cutoff": (0.5, 30.0), "cutoff_width": (0.01, 30.0), "sigma": (0.05, 5.0), "n_max": (1, LARGEST_N_MAX),
            "l_max": (0, 20), "radial_scale": (0.0, 1e3), "radial_exponent": (2, 20), "central_weight": (0.0, 1e3),
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
        for name, known in (("basis", BASES), ("switching", SWITCHES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class RadialTable:
    """Hermite table of f_nl.

    Attributes:
        start: position of the first knot, Angstrom (at most 0, so that a knot lies on the cutoff).
        spacing: distance of two knots, Angstrom.
        values: f_nl and df_nl/dr at the knots, shape (n_knots, 2, l_max + 1, n_max).
        at_zero: f_n0(0), of the centre itself; r = 0 need not be a knot; shape (n_max,).
    """

    start: float
    spacing: float
    values: Floats
    at_zero: Floats


def _radial_scaling(r: Floats, parameters: SoapParameters) -> tuple[Floats, Floats]:
    """u(r) = 1 / (1 + (r / r0)^m) and its derivative; 1 and 0 where r0 is 0."""
    r0, m = parameters.radial_scale, parameters.radial_exponent
    if r0 == 0:
        return np.ones_like(r), np.zeros_like(r)
    u = 1.0 / (1.0 + (r / r0) ** m)
    return u, -(u**2) * m * (r / r0) ** (m - 1) / r0


def _scaled_bessel(l_max: int, x: Floats) -> list[Floats]:
    """j_l = exp(-x) i_l(x) / x^l for l = 0 ... l_max, exact to rounding also at x = 0.

    j_(l - 1) = x^2 j_(l + 1) + (2 l + 1) j_l, downwards, where all terms are positive.
    """
    small = x < 1e-3
    y = np.where(small, 1.0, x)
    out = []
    for degree in (l_max, l_max - 1):
        series = np.exp(-x) / factorial2(2 * degree + 1) * (1.0 + x**2 / (2 * (2 * degree + 3)))
        out.append(np.where(small, series, np.sqrt(np.pi / 2) * ive(degree + 0.5, y) / y ** (degree + 0.5)))
    for degree in range(l_max - 1, 0, -1):
        out.append(x**2 * out[-2] + (2 * degree + 1) * out[-1])
    return out[::-1]


def _radial_functions(basis: RadialBasis, r: Floats, sigma: float) -> tuple[Floats, Floats]:
    """R_nl(r) / r^l = sum_g exp(-(q_g - r)^2 / 2 sigma^2) k_g^l exp(-x) i_l(x) / x^l T_l,gn.

    k_g = q_g / sigma^2 and x = k_g r.

    Returns:
        values and derivatives, each shape (n_r, l_max + 1, n_max).
    """
    n_l = len(basis.projection)
    k, r = basis.radii / sigma**2, r[:, None]
    x = k * r
    bessel = _scaled_bessel(n_l, x)
    power = np.exp(-0.5 * ((basis.radii - r) / sigma) ** 2)  # times k^l
    values, slopes = np.empty((2, len(r), n_l, basis.projection.shape[2]))
    for degree, projection in enumerate(basis.projection):
        values[:, degree] = (power * bessel[degree]) @ projection
        # d/dr of exp(-(q^2 + r^2) / 2 sigma^2) i_l(x) / x^l with d/dx (i_l / x^l) = i_(l+1) / x^l
        slopes[:, degree] = (power * (k * x * bessel[degree + 1] - r / sigma**2 * bessel[degree])) @ projection
        power = power * k
    return values, slopes


def _largest_spacing(parameters: SoapParameters) -> float:
    if parameters.basis == "gto":
        return SPACING
    narrowness = min(1.0, 2.0 * parameters.sigma, parameters.cutoff_width)
    return IMPORTED_SPACING * max(narrowness, 0.2)  # no table of a stranger's model fills the memory


@lru_cache
def radial_table(parameters: SoapParameters) -> RadialTable:
    """Tabulate f_nl(r) = s(r) u(r) R_nl(r) / r^l and its derivative."""
    p = parameters
    spacing = p.cutoff_width / np.ceil(p.cutoff_width / _largest_spacing(p) - 1e-9)
    below = int(np.ceil(p.cutoff / spacing - 1e-9))  # so that knots lie on the cutoff and where the switch begins
    knots = p.cutoff + spacing * np.arange(-below, 2)
    r, sign = np.abs(knots), np.sign(knots)
    basis = BASES[p.basis](p.cutoff, p.sigma, p.n_max, p.l_max)
    f, df = _radial_functions(basis, r, p.sigma)
    s, ds = SWITCHES[p.switching](r, p.cutoff - p.cutoff_width, p.cutoff)
    u, du = _radial_scaling(r, p)
    envelope, slope = (s * u)[:, None, None], (ds * u + s * du)[:, None, None]
    values = np.empty((len(knots), 2, p.l_max + 1, p.n_max))
    values[:, 0] = envelope * f
    values[:, 1] = (slope * f + envelope * df) * sign[:, None, None]
    at_zero, _ = _radial_functions(basis, np.zeros(1), p.sigma)  # s(0) = u(0) = 1
    return RadialTable(float(knots[0]), float(spacing), values, at_zero[0, 0])
