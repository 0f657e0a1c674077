"""Gaussian charges in open boundaries: the direct sum over all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kqeq_md.electrostatics.gaussians import exponent, screened, self_interaction
from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT


@dataclass(frozen=True)
class DirectCoulomb:
    """J and the derivatives of 1/2 q.J.q for open boundaries, exact, in a time that grows like n^2.

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

    def apply(self, charges: Floats) -> Floats:
        """J q, eV/e, shape (n,), without storing J."""
        pairs: Floats = COULOMB_CONSTANT * _pair_product(self.positions, self.gaussian_width, charges)
        return pairs + self_interaction(self.hardness, self.gaussian_width) * charges

    roughness: ClassVar[float] = 0.0

    def apply_roughly(self, charges: Floats) -> Floats:
        """J q: there is nothing quicker."""
        return self.apply(charges)

    def field(self, charges: Floats) -> Floats:
        """Field of the charges at the atoms, V/Angstrom, shape (n, 3)."""
        out: Floats = COULOMB_CONSTANT * _pair_field(self.positions, self.gaussian_width, charges)
        return out

    def gradient(self, charges: Floats) -> tuple[Floats, Floats]:
        """d(1/2 q.J.q)/dR (n, 3) in eV/Angstrom and d/d(strain) (3, 3) in eV, both at fixed charges."""
        grad_r = -charges[:, None] * self.field(charges)
        return grad_r, self.positions.T @ grad_r


@compiled
def _pair_matrix(positions: Floats, width: Floats) -> Floats:
    """erf(g_ij r_ij) / r_ij off the diagonal."""
    n = len(positions)
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            r = np.sqrt(((positions[i] - positions[j]) ** 2).sum())
            out[i, j] = out[j, i] = screened(exponent(width[i], width[j]), r)[0]
    return out


@compiled
def _pair_product(positions: Floats, width: Floats, charges: Floats) -> Floats:
    """sum_(j != i) erf(g_ij r_ij) / r_ij q_j."""
    n = len(positions)
    out = np.zeros(n)
    for i in range(n):
        for j in range(i):
            x, y, z = (positions[i, 0] - positions[j, 0], positions[i, 1] - positions[j, 1],
                       positions[i, 2] - positions[j, 2])  # fmt: skip
            value = screened(exponent(width[i], width[j]), np.sqrt(x * x + y * y + z * z))[0]
            out[i] += value * charges[j]
            out[j] += value * charges[i]
    return out


@compiled
def _pair_field(positions: Floats, width: Floats, charges: Floats) -> Floats:
    """-sum_(j != i) q_j d/dR_i erf(g_ij r_ij) / r_ij."""
    n = len(positions)
    field = np.zeros((n, 3))
    d = np.empty(3)
    for i in range(n):
        for j in range(i):
            for a in range(3):
                d[a] = positions[i, a] - positions[j, a]
            r = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
            slope = screened(exponent(width[i], width[j]), r)[1]
            for a in range(3):
                field[i, a] -= slope * charges[j] * d[a]
                field[j, a] += slope * charges[i] * d[a]
    return field
