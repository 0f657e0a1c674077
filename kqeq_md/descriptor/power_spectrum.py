"""The SOAP power spectrum of every atom and its reverse.

    c_i,a,lm = sum_j f_nl(r_ij) r_ij^l Y_lm(r_ij),   a = (element of j, n); the centre is part of its own density
    p_i,l,ab = sqrt(w_ab / (2 l + 1)) sum_m c_i,a,lm c_i,b,lm,   a <= b, w_ab = 2 off the diagonal, 1 on it

so that p_i . p_j equals the sum over all (a, b). No gradient of a descriptor is ever stored: the reverse carries
dE/dp back to dE/d(pair vectors).

Reference: Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013), doi:10.1103/PhysRevB.87.184115.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kqeq_md.descriptor.harmonics import normalisation, solid_harmonics, solid_harmonics_vjp
from kqeq_md.descriptor.radial import RadialTable, SoapParameters, radial_table
from kqeq_md.jit import JIT
from kqeq_md.neighbours import Pairs
from kqeq_md.structure import Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Descriptor:
    """Parameters and tables of the power spectrum for `n_species` elements."""

    parameters: SoapParameters
    n_species: int
    table: RadialTable = field(init=False, repr=False)
    norm: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", radial_table(self.parameters))
        object.__setattr__(self, "norm", normalisation(self.parameters.l_max))

    @property
    def size(self) -> int:
        """Length of the power spectrum of one atom."""
        return self.size_for(self.parameters, self.n_species)

    @staticmethod
    def size_for(parameters: SoapParameters, n_species: int) -> int:
        """(l_max + 1) a (a + 1) / 2 with a = n_species n_max channels."""
        channels = n_species * parameters.n_max
        return (parameters.l_max + 1) * channels * (channels + 1) // 2

    def power_spectrum(self, pairs: Pairs, species_all: Ints) -> tuple[Floats, Floats]:
        """p (n_local, size) and the density coefficients c (n_local, lm, a), which the reverse needs again.

        Args:
            pairs: neighbours within the cutoff.
            species_all: element index of owned atoms and ghosts, shape (n_all,).
        """
        table, p = self.table, self.parameters
        c = expand_density(
            pairs.first, pairs.neighbour, pairs.vectors, species_all, self.n_species,
            p.cutoff, table.start, table.spacing, table.values, self.norm,
        )  # fmt: skip
        return contract(c, p.l_max), c

    def power_spectrum_vjp(self, pairs: Pairs, species_all: Ints, c: Floats, grad_p: Floats) -> Floats:
        """dE/d(pair vectors), shape (n_pairs, 3), from dE/dp, shape (n_local, size)."""
        table, p = self.table, self.parameters
        return expand_density_vjp(
            pairs.first, pairs.neighbour, pairs.vectors, species_all,
            p.cutoff, table.start, table.spacing, table.values, self.norm,
            contract_vjp(c, p.l_max, grad_p),
        )  # fmt: skip


def contract(c: Floats, l_max: int) -> Floats:
    """p_l,ab = sqrt(w_ab / (2 l + 1)) sum_m c_a,lm c_b,lm over a <= b; shape (n, size)."""
    n, _, channels = c.shape
    a, b = np.triu_indices(channels)
    weight = np.where(a == b, 1.0, np.sqrt(2.0))
    out = np.empty((n, l_max + 1, len(a)))
    for degree in range(l_max + 1):
        c_l = c[:, degree**2 : (degree + 1) ** 2]
        out[:, degree] = (c_l.transpose(0, 2, 1) @ c_l)[:, a, b] * (weight / np.sqrt(2 * degree + 1))
    return out.reshape(n, -1)


def contract_vjp(c: Floats, l_max: int, grad_p: Floats) -> Floats:
    """dE/dc, shape of c, from dE/dp."""
    n, _, channels = c.shape
    a, b = np.triu_indices(channels)
    weight = np.where(a == b, 1.0, np.sqrt(2.0))
    grad = grad_p.reshape(n, l_max + 1, len(a))
    out = np.empty_like(c)
    matrix = np.zeros((n, channels, channels))
    for degree in range(l_max + 1):
        matrix[:, a, b] = grad[:, degree] * (weight / np.sqrt(2 * degree + 1))
        c_l = c[:, degree**2 : (degree + 1) ** 2]
        out[:, degree**2 : (degree + 1) ** 2] = c_l @ (matrix + matrix.transpose(0, 2, 1))
    return out


@njit(**JIT)
def interpolate(r: float, start: float, spacing: float, values: Floats, f: Floats, df: Floats) -> None:
    """Cubic Hermite interpolation of f_nl and its derivative at distance r into f, df, shape (l_max + 1, n_max)."""
    u = (r - start) / spacing
    k = int(u)
    u -= k
    h01 = u * u * (3.0 - 2.0 * u)
    h10 = spacing * u * (1.0 - u) ** 2
    h11 = spacing * u * u * (u - 1.0)
    e01 = 6.0 * u * (1.0 - u) / spacing
    e10 = 1.0 + u * (3.0 * u - 4.0)
    e11 = u * (3.0 * u - 2.0)
    for degree in range(f.shape[0]):
        for n in range(f.shape[1]):
            left, right = values[k, 0, degree, n], values[k + 1, 0, degree, n]
            slope_left, slope_right = values[k, 1, degree, n], values[k + 1, 1, degree, n]
            f[degree, n] = left + h01 * (right - left) + h10 * slope_left + h11 * slope_right
            df[degree, n] = e01 * (right - left) + e10 * slope_left + e11 * slope_right


@njit(**JIT)
def expand_density(
    first: Ints, neighbour: Ints, vectors: Floats, species: Ints, n_species: int,
    cutoff: float, start: float, spacing: float, values: Floats, norm: Floats,
) -> Floats:  # fmt: skip
    """c_i,lm,a = sum_j f_nl(r_ij) r_ij^l Y_lm(r_ij), the centre at r = 0 included; shape (n_local, lm, a)."""
    n_local, n_l, n_max = len(first) - 1, values.shape[2], values.shape[3]
    c = np.zeros((n_local, n_l * n_l, n_species * n_max))
    f, df = np.empty((n_l, n_max)), np.empty((n_l, n_max))
    cosine, sine = np.zeros((n_l, n_l)), np.zeros((n_l, n_l))
    for i in range(n_local):
        interpolate(0.0, start, spacing, values, f, df)
        for n in range(n_max):
            c[i, 0, species[i] * n_max + n] += norm[0, 0] * f[0, n]
        for pair in range(first[i], first[i + 1]):
            x, y, z = vectors[pair]
            r = np.sqrt(x * x + y * y + z * z)
            if r >= cutoff:
                continue
            interpolate(r, start, spacing, values, f, df)
            solid_harmonics(x, y, z, cosine, sine)
            a0 = species[neighbour[pair]] * n_max
            for degree in range(n_l):
                lm0 = degree * degree + degree
                for m in range(degree + 1):
                    yc, ys = norm[degree, m] * cosine[degree, m], norm[degree, m] * sine[degree, m]
                    for n in range(n_max):
                        c[i, lm0 + m, a0 + n] += yc * f[degree, n]
                    if m:
                        for n in range(n_max):
                            c[i, lm0 - m, a0 + n] += ys * f[degree, n]
    return c


@njit(**JIT)
def expand_density_vjp(
    first: Ints, neighbour: Ints, vectors: Floats, species: Ints,
    cutoff: float, start: float, spacing: float, values: Floats, norm: Floats, grad: Floats,
) -> Floats:  # fmt: skip
    """dE/d(pair vectors), shape (n_pairs, 3), from grad = dE/dc, shape (n_local, lm, a)."""
    n_local, n_l, n_max = len(first) - 1, values.shape[2], values.shape[3]
    out = np.zeros(vectors.shape)
    f, df = np.empty((n_l, n_max)), np.empty((n_l, n_max))
    cosine, sine = np.zeros((n_l, n_l)), np.zeros((n_l, n_l))
    grad_c, grad_s = np.zeros((n_l, n_l)), np.zeros((n_l, n_l))
    for i in range(n_local):
        for pair in range(first[i], first[i + 1]):
            x, y, z = vectors[pair]
            r = np.sqrt(x * x + y * y + z * z)
            if r >= cutoff:
                continue
            interpolate(r, start, spacing, values, f, df)
            solid_harmonics(x, y, z, cosine, sine)
            a0 = species[neighbour[pair]] * n_max
            radial = 0.0  # sum over lm of dE/dc df/dr Y_lm: the part along the pair
            for degree in range(n_l):
                lm0 = degree * degree + degree
                for m in range(degree + 1):
                    t = dt = 0.0
                    for n in range(n_max):
                        g = grad[i, lm0 + m, a0 + n]
                        t += g * f[degree, n]
                        dt += g * df[degree, n]
                    grad_c[degree, m] = norm[degree, m] * t
                    radial += norm[degree, m] * dt * cosine[degree, m]
                    if m:
                        t = dt = 0.0
                        for n in range(n_max):
                            g = grad[i, lm0 - m, a0 + n]
                            t += g * f[degree, n]
                            dt += g * df[degree, n]
                        grad_s[degree, m] = norm[degree, m] * t
                        radial += norm[degree, m] * dt * sine[degree, m]
            gx, gy, gz = solid_harmonics_vjp(cosine, sine, grad_c, grad_s)
            out[pair, 0] = gx + radial * x / r
            out[pair, 1] = gy + radial * y / r
            out[pair, 2] = gz + radial * z / r
    return out
