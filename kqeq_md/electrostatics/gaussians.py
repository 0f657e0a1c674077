"""The terms of the one Hamiltonian, each defined once.

Atom i carries the density q_i (2 pi s_i^2)^(-3/2) exp(-r^2 / 2 s_i^2). Two such charges interact by

    J_ij = kC erf(g_ij r_ij) / r_ij,   g_ij = 1 / sqrt(2 (s_i^2 + s_j^2)),   J_ii = eta_i + kC / (sqrt(pi) s_i).

With this self term and these g_ij, J is positive definite for every hardness eta_i >= 0 in open boundaries.

Reference: Rappe and Goddard, J. Phys. Chem. 95, 3358 (1991), doi:10.1021/j100161a070; Gaussian charges:
Vondrak, Reuter, Margraf, J. Chem. Phys. 159, 054109 (2023).
"""

from __future__ import annotations

from math import erf, exp, pi, sqrt

import numpy as np

from kqeq_md.machine.jit import compiled
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT


def self_interaction(hardness: Floats, gaussian_width: Floats) -> Floats:
    """J_ii = eta_i + kC / (sqrt(pi) s_i), eV/e^2, shape (n,)."""
    out: Floats = hardness + COULOMB_CONSTANT / (np.sqrt(np.pi) * gaussian_width)
    return out


def background(gaussian_width: Floats, splitting: float, volume: float) -> Floats:
    """Neutralising background on every J_ij: -kC (pi / V) (1 / alpha^2 - 1 / g_ij^2), eV/e^2, shape (n, n).

    It makes the energy of a charged cell independent of the Ewald splitting alpha (1/Angstrom).
    """
    s2 = gaussian_width**2
    inverse_g2 = 2.0 * (s2[:, None] + s2[None, :])
    out: Floats = -COULOMB_CONSTANT * np.pi / volume * (1.0 / splitting**2 - inverse_g2)
    return out


def background_potential(
    gaussian_width: Floats, charges: Floats, splitting: float, volume: float, halo: Halo = SERIAL
) -> Floats:
    """The neutralising background times q by the moments of q over all ranks, eV/e, shape (n,)."""
    s2 = gaussian_width**2
    total, second = halo.sum(np.array([charges.sum(), charges @ s2]))
    moments = total * (1.0 / splitting**2 - 2.0 * s2) - 2.0 * second
    out: Floats = -COULOMB_CONSTANT * np.pi / volume * moments
    return out


@compiled
def exponent(width_i: float, width_j: float) -> float:
    """g_ij = 1 / sqrt(2 (s_i^2 + s_j^2)), 1/Angstrom."""
    return 1.0 / sqrt(2.0 * (width_i * width_i + width_j * width_j))


@compiled
def screened(g: float, r: float) -> tuple[float, float]:
    """erf(g r) / r and its derivative divided by r; finite at r = 0."""
    x = g * r
    if x < 1e-2:  # series: the closed form of the derivative cancels there
        x2 = x * x
        slope = -4.0 / 3.0 * (1.0 - 0.6 * x2 + 3.0 / 14.0 * x2 * x2) / sqrt(pi) * g**3
        return 2.0 / sqrt(pi) * g * (1.0 - x2 / 3.0 + x2 * x2 / 10.0), slope
    if x > 6.0:  # erfc(6) is 2e-17
        return 1.0 / r, -1.0 / (r * r * r)
    value = erf(x) / r
    return value, (2.0 * g / sqrt(pi) * exp(-x * x) - value) / (r * r)
