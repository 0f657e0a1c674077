"""Tables of the short-ranged pair function of the Ewald sum, one for each pair of elements.

    f_ab(r) = kC [erf(g_ab r) - erf(alpha r)] / r,   g_ab = 1 / sqrt(2 (s_a^2 + s_b^2))

Cubic Hermite interpolation on even spacing; its slope is the exact derivative of its value, so that forces are
those of the energy to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, pi, sqrt

import numpy as np
from scipy.special import erf

from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT

SHARE = 1 / 30
"""Part of the force error that interpolation may make in one pair; many pairs add up at random."""


@dataclass(frozen=True)
class PairTable:
    """f_ab and its derivative on a grid.

    Attributes:
        values: kC [erf(g r) - erf(alpha r)] / r in eV/e^2 and its derivative times the spacing, shape
            (n_species, n_species, n_points, 2).
        spacing: Angstrom.
        cutoff: f_ab is taken as zero from here on, Angstrom.
    """

    values: Floats
    spacing: float
    cutoff: float


def pair_table(gaussian_width: Floats, splitting: float, cutoff: float, accuracy: float) -> PairTable:
    """Tables up to `cutoff`, fine enough for `accuracy`.

    The slope of a cubic Hermite interpolant errs by at most sqrt(3)/216 h^3 max|f''''|, and |f''''| is largest at
    r = 0, where it is 24 / (5 sqrt(pi)) kC g^5. Rounding of the values, 2 / sqrt(pi) kC g at most, adds 4e-16 of them
    over h: a finer table than one in which both are equal would be worse.

    Args:
        gaussian_width: s_a of each element, Angstrom, shape (n_species,).
        splitting: alpha, 1/Angstrom.
        cutoff: Angstrom.
        accuracy: target rms force error for charges of about 1 e, eV/Angstrom.
    """
    s2 = gaussian_width**2
    g = 1.0 / np.sqrt(2.0 * (s2[:, None] + s2[None, :]))
    steepest = float(g.max())
    fourth = 24.0 / (5.0 * sqrt(pi)) * COULOMB_CONSTANT * steepest**5
    rounding = 4e-16 * 2.0 / sqrt(pi) * COULOMB_CONSTANT * steepest
    spacing = max(
        (SHARE * accuracy * 216.0 / (sqrt(3.0) * fourth)) ** (1.0 / 3.0),
        (rounding * 216.0 / (sqrt(3.0) * fourth)) ** (1.0 / 4.0),
    )
    r = spacing * np.arange(ceil(cutoff / spacing) + 2)
    value, slope = (a - b for a, b in zip(_screened(g[..., None], r), _screened(np.array(splitting), r), strict=True))
    return PairTable(COULOMB_CONSTANT * np.stack([value, spacing * slope], axis=-1), spacing, cutoff)


def _screened(g: Floats, r: Floats) -> tuple[Floats, Floats]:
    """erf(g r) / r and its derivative; by their series where the closed forms cancel."""
    x = g * r
    small, inside = x < 0.03, np.where(r > 0.0, r, 1.0)
    value = np.where(small, 2.0 / sqrt(pi) * g * (1.0 - x**2 / 3.0 + x**4 / 10.0 - x**6 / 42.0), erf(x) / inside)
    slope = (2.0 / sqrt(pi) * g * np.exp(-(x**2)) - value) / inside
    series = 4.0 / sqrt(pi) * g**2 * x * (-1.0 / 3.0 + x**2 / 5.0 - x**4 / 14.0 + x**6 / 54.0)
    return value, np.where(small, series, slope)


@compiled
def tabulated(table: Floats, u: float) -> tuple[float, float]:
    """Value and derivative (per spacing) of one pair's table at u = r / spacing."""
    below = int(u)
    t, k, m = u - below, np.uint64(below), np.uint64(below + 1)  # unsigned: no look for negative indices
    left, slope_left, right, slope_right = table[k, 0], table[k, 1], table[m, 0], table[m, 1]
    c2 = 3.0 * (right - left) - 2.0 * slope_left - slope_right
    c3 = 2.0 * (left - right) + slope_left + slope_right
    return left + t * (slope_left + t * (c2 + t * c3)), slope_left + t * (2.0 * c2 + 3.0 * t * c3)
