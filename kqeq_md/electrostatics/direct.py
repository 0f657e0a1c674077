"""Gaussian charges in open boundaries: the direct sum over all pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from kqeq_md.electrostatics.gaussians import exponent, screened, self_interaction
from kqeq_md.jit import JIT
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT


@dataclass(frozen=True)
class DirectCoulomb:
    """J and the derivatives of 1/2 q.J.q for open boundaries.

    Attributes:
        positions: Angstrom, shape (n, 3).
        gaussian_width: s_i, Angstrom, shape (n,).
        hardness: eta_i, eV/e^2, shape (n,).
    """

    positions: Floats
    gaussian_width: Floats
    hardness: Floats

    def matrix(self) -> Floats:
        """J, eV/e^2, shape (n, n)."""
        out: Floats = COULOMB_CONSTANT * _pair_matrix(self.positions, self.gaussian_width)
        out[np.diag_indices_from(out)] = self_interaction(self.hardness, self.gaussian_width)
        return out

    def gradient(self, charges: Floats) -> tuple[Floats, Floats]:
        """d(1/2 q.J.q)/dR (n, 3) in eV/Angstrom and d/d(strain) (3, 3) in eV, both at fixed charges."""
        grad_r, grad_strain = _pair_gradient(self.positions, self.gaussian_width, charges)
        return COULOMB_CONSTANT * grad_r, COULOMB_CONSTANT * grad_strain


@njit(**JIT)
def _pair_matrix(positions: Floats, width: Floats) -> Floats:
    """erf(g_ij r_ij) / r_ij off the diagonal."""
    n = len(positions)
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            r = np.sqrt(((positions[i] - positions[j]) ** 2).sum())
            out[i, j] = out[j, i] = screened(exponent(width[i], width[j]), r)[0]
    return out


@njit(**JIT)
def _pair_gradient(positions: Floats, width: Floats, charges: Floats) -> tuple[Floats, Floats]:
    """Derivatives of sum_(i<j) q_i q_j erf(g_ij r_ij) / r_ij in positions and strain."""
    n = len(positions)
    grad_r, grad_strain = np.zeros((n, 3)), np.zeros((3, 3))
    d = np.empty(3)
    for i in range(n):
        for j in range(i):
            for a in range(3):
                d[a] = positions[i, a] - positions[j, a]
            r = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
            slope = charges[i] * charges[j] * screened(exponent(width[i], width[j]), r)[1]
            for a in range(3):
                grad_r[i, a] += slope * d[a]
                grad_r[j, a] -= slope * d[a]
                for b in range(3):
                    grad_strain[a, b] += slope * d[a] * d[b]
    return grad_r, grad_strain
