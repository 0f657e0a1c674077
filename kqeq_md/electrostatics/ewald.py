"""Gaussian charges in a periodic cell: direct Ewald summation, exact to a stated force error.

    J_ij = kC [ sum_S (erf(g_ij r) - erf(alpha r)) / r  +  (4 pi / V) sum_k exp(-k^2 / 4 alpha^2) / k^2 cos k.r_ij
               - (pi / V) (1 / alpha^2 - 1 / g_ij^2) ],   r = |R_j - R_i + S|

with the self term 2 alpha / sqrt(pi) taken off the diagonal. A slab is put into a cell with vacuum, and the slab term
(`slab.py`) takes its images along the normal away. It costs O(n^2 n_k): the reference for a mesh.

References: Ewald, Ann. Phys. 369, 253 (1921), doi:10.1002/andp.19213690304; truncation errors: Kolafa and Perram,
Mol. Simul. 9, 351 (1992), doi:10.1080/08927029208049126.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, pi, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from kqeq_md.electrostatics.gaussians import background, exponent, screened, self_interaction
from kqeq_md.electrostatics.lattice import reduced_cell
from kqeq_md.electrostatics.slab import padded_cell, padded_length, slab_field, slab_matrix, slab_potential, slab_strain
from kqeq_md.errors import StructureError
from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats, plane
from kqeq_md.units import COULOMB_CONSTANT

SELF = 1e-12
"""Angstrom^2. An image this close is the atom itself; different atoms are never so close."""

BLOCK = 1024
"""Wave vectors handled at once: bounds the memory of cos k.R at 16 kB per atom."""

MOST_VECTORS = 10**7
"""Lattice vectors listed at most, 240 MB: more are asked for by a mistake in the cell or in a width."""


@dataclass(frozen=True)
class EwaldCoulomb:
    """J and the derivatives of 1/2 q.J.q for a cell that repeats along all three vectors, or along two (slab).

    Attributes:
        positions: Angstrom, shape (n, 3).
        cell: lattice vectors as rows, Angstrom, shape (3, 3).
        gaussian_width: s_i, Angstrom, shape (n,).
        hardness: eta_i, eV/e^2, shape (n,).
        accuracy: target rms force error for charges of about 1 e, eV/Angstrom; splitting and cutoffs follow from it.
        open_axis: the cell vector along which a slab does not repeat; None where all three do.
        lattice: the cell in which the sums are done: reduced, and padded with vacuum along the normal of a slab.

    Raises:
        StructureError: the sums would run over more than 1e7 lattice vectors.
    """

    positions: Floats
    cell: Floats
    gaussian_width: Floats
    hardness: Floats
    accuracy: float
    open_axis: int | None = None
    lattice: Floats = field(init=False)
    splitting: float = field(init=False)
    real_cutoff: float = field(init=False)
    wave_vectors: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lattice = reduced_cell(self.cell) if self.open_axis is None else self._padded(self.open_axis)
        alpha, r_cut, k_cut = ewald_cutoffs(len(self.positions), lattice, self.gaussian_width, self.accuracy)
        object.__setattr__(self, "lattice", lattice)
        object.__setattr__(self, "splitting", alpha)
        object.__setattr__(self, "real_cutoff", r_cut)
        object.__setattr__(self, "wave_vectors", half_space_wave_vectors(lattice, k_cut))

    @property
    def volume(self) -> float:
        """Volume of the cell in which the sums are done, vacuum included, Angstrom^3."""
        return float(abs(np.linalg.det(self.lattice)))

    def matrix(self) -> Floats:
        """J, eV/e^2, shape (n, n)."""
        images = lattice_images(self.lattice, self.real_cutoff)
        out: Floats = COULOMB_CONSTANT * _real_matrix(
            self.positions, self.lattice, np.linalg.inv(self.lattice), self.gaussian_width, images,
            self.splitting, self.real_cutoff,
        )  # fmt: skip
        for k in np.array_split(self.wave_vectors, len(self.wave_vectors) // BLOCK + 1):
            phase = self.positions @ k.T
            root = np.sqrt(self._influence(k))
            for wave in (np.cos(phase) * root, np.sin(phase) * root):
                out += wave @ wave.T
        out += background(self.gaussian_width, self.splitting, self.volume)
        diagonal = self_interaction(self.hardness, self.gaussian_width)
        out[np.diag_indices_from(out)] += diagonal - COULOMB_CONSTANT * 2.0 * self.splitting / sqrt(pi)
        if self.open_axis is not None:
            z, _, length, area = self._heights()
            out += slab_matrix(z, self.gaussian_width, length, area)
        return out

    def gradient(self, charges: Floats) -> tuple[Floats, Floats]:
        """d(1/2 q.J.q)/dR (n, 3) in eV/Angstrom and d/d(strain) (3, 3) in eV, both at fixed charges."""
        images = lattice_images(self.lattice, self.real_cutoff)
        grad_r, grad_strain = _real_gradient(
            self.positions, self.lattice, np.linalg.inv(self.lattice), self.gaussian_width, charges, images,
            self.splitting, self.real_cutoff,
        )  # fmt: skip
        grad_r, grad_strain = COULOMB_CONSTANT * grad_r, COULOMB_CONSTANT * grad_strain
        for k in np.array_split(self.wave_vectors, len(self.wave_vectors) // BLOCK + 1):
            phase = self.positions @ k.T
            cosine, sine, weight = np.cos(phase), np.sin(phase), self._influence(k)
            real, imaginary = charges @ cosine, charges @ sine
            grad_r += charges[:, None] * ((cosine * (weight * imaginary) - sine * (weight * real)) @ k)
            energy = 0.5 * weight * (real**2 + imaginary**2)
            k2 = np.einsum("kc,kc->k", k, k)
            along = energy * (2.0 / k2 + 0.5 / self.splitting**2)
            grad_strain += (k * along[:, None]).T @ k - energy.sum() * np.eye(3)
        neutralised = background(self.gaussian_width, self.splitting, self.volume)
        grad_strain -= 0.5 * charges @ neutralised @ charges * np.eye(3)
        if self.open_axis is None:
            return grad_r, grad_strain
        z, normal, length, area = self._heights()
        moments = (z, self.gaussian_width, charges, length, area)
        grad_r -= np.outer(charges * slab_field(*moments), normal)
        slab_energy = 0.5 * float(charges @ slab_potential(*moments))
        return grad_r, slab_strain(grad_strain, slab_energy, grad_r, self.positions, normal)

    def _padded(self, open_axis: int) -> Floats:
        """Cell of a slab with the vacuum that the accuracy asks for."""
        lateral, normal = plane(self.cell, open_axis)
        z, widest = self.positions @ normal, float(self.gaussian_width.max())
        # pairs across the vacuum do no harm here: they are part of the lattice sum
        return padded_cell(lateral, normal, padded_length(z, lateral, widest, self.accuracy, real_cutoff=0.0))

    def _heights(self) -> tuple[Floats, Floats, float, float]:
        """Positions along the normal (n,), normal (3,), length of the padded cell and area of the plane."""
        normal = self.lattice[2] / np.linalg.norm(self.lattice[2])
        length = float(np.linalg.norm(self.lattice[2]))
        return self.positions @ normal, normal, length, self.volume / length

    def _influence(self, k: Floats) -> Floats:
        """2 kC (4 pi / V) exp(-k^2 / 4 alpha^2) / k^2: the factor 2 stands for the other half of k-space."""
        k2 = np.einsum("kc,kc->k", k, k)
        out: Floats = COULOMB_CONSTANT * 8.0 * pi / self.volume * np.exp(-k2 / (4.0 * self.splitting**2)) / k2
        return out


def ewald_cutoffs(n: int, cell: Floats, gaussian_width: Floats, accuracy: float) -> tuple[float, float, float]:
    """Splitting alpha (1/Angstrom), real-space cutoff (Angstrom) and k-space cutoff (1/Angstrom).

    alpha balances the two sums and stays below the smallest g_ij, so that the real-space term decays like
    erfc(alpha r). With r_cut = x / alpha and k_cut = 2 alpha x, the rms force errors of Kolafa and Perram for n
    charges of 1 e add up to less than 4 kC sqrt(n alpha / (x V)) exp(-x^2); 5 instead of 4 covers cells so small
    that wave vectors come in shells. x is the smallest number (in steps of 0.05) that brings this below the accuracy.
    The estimate is for charges all over V; in a padded slab it holds too, as r_cut grows with the vacuum.
    """
    volume = float(abs(np.linalg.det(cell)))
    alpha = min(sqrt(pi) * (n / volume**2) ** (1 / 6), 1.0 / (2.0 * float(gaussian_width.max())))
    scale = 5.0 * COULOMB_CONSTANT * sqrt(n * alpha / volume)
    x = 1.0
    while scale / sqrt(x) * exp(-x * x) > accuracy:
        x += 0.05
    return alpha, x / alpha, 2.0 * alpha * x


def half_space_wave_vectors(cell: Floats, k_cut: float) -> Floats:
    """2 pi times the reciprocal lattice within k_cut, one of each pair +-k, without 0; 1/Angstrom, shape (n_k, 3)."""
    reciprocal = 2.0 * pi * np.linalg.inv(cell).T
    integers = integer_grid(np.floor(k_cut * np.linalg.norm(cell, axis=1) / (2.0 * pi)), cell)
    integers = integers[len(integers) // 2 + 1 :]  # the grid is symmetric about its middle element, k = 0
    k = integers @ reciprocal
    inside: Floats = k[np.einsum("kc,kc->k", k, k) <= k_cut**2]
    return inside


def lattice_images(cell: Floats, cutoff: float) -> Floats:
    """Lattice vectors that can bring a pair from within half a cell into the cutoff; Angstrom, shape (n_images, 3).

    Along a cell vector the planes of images are one height apart, and the nearest pair is at most half of it away.
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    images: Floats = integer_grid(np.floor(cutoff / heights + 0.5), cell) @ cell
    return images


def integer_grid(reach: Floats, cell: Floats) -> NDArray[np.int64]:
    """All integers from -reach to reach along three axes, symmetric about the middle row; shape (m, 3).

    Raises:
        StructureError: they are too many.
    """
    total = prod(2.0 * float(m) + 1.0 for m in reach)
    if not total <= MOST_VECTORS:
        raise StructureError(
            f"`cell` must need at most {MOST_VECTORS:.0e} lattice vectors for the accuracy and the Gaussian widths, "
            f"got {total:.1e} for {cell.tolist()}"
        )
    grids = np.meshgrid(*(np.arange(-int(m), int(m) + 1) for m in reach), indexing="ij")
    return np.stack(grids, axis=-1).reshape(-1, 3)


@compiled
def _nearest(positions: Floats, cell: Floats, inverse: Floats, i: int, j: int, d: Floats) -> None:
    """d = R_j - R_i, moved by lattice vectors to within half a cell along each of them."""
    for a in range(3):
        d[a] = positions[j, a] - positions[i, a]
    for a in range(3):
        shift = np.floor(d[0] * inverse[0, a] + d[1] * inverse[1, a] + d[2] * inverse[2, a] + 0.5)
        for b in range(3):
            d[b] -= shift * cell[a, b]


@compiled
def _real_matrix(
    positions: Floats, cell: Floats, inverse: Floats, width: Floats, images: Floats, alpha: float, cutoff: float
) -> Floats:
    """sum_S (erf(g r) - erf(alpha r)) / r within the cutoff; on the diagonal without S = 0."""
    n = len(positions)
    out = np.zeros((n, n))
    d = np.empty(3)
    for i in range(n):
        for j in range(i + 1):
            _nearest(positions, cell, inverse, i, j, d)
            g = exponent(width[i], width[j])
            total = 0.0
            for s in range(len(images)):
                x, y, z = d[0] + images[s, 0], d[1] + images[s, 1], d[2] + images[s, 2]
                r2 = x * x + y * y + z * z
                if SELF < r2 < cutoff * cutoff:
                    r = np.sqrt(r2)
                    total += screened(g, r)[0] - screened(alpha, r)[0]
            out[i, j] = out[j, i] = total
    return out


@compiled
def _real_gradient(
    positions: Floats, cell: Floats, inverse: Floats, width: Floats, charges: Floats, images: Floats,
    alpha: float, cutoff: float,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Derivatives of 1/2 sum_ij q_i q_j sum_S (erf(g r) - erf(alpha r)) / r in positions and strain."""
    n = len(positions)
    grad_r, grad_strain = np.zeros((n, 3)), np.zeros((3, 3))
    d, v = np.empty(3), np.empty(3)
    for i in range(n):
        for j in range(i + 1):
            _nearest(positions, cell, inverse, i, j, d)
            g = exponent(width[i], width[j])
            qq = charges[i] * charges[j] * (0.5 if i == j else 1.0)
            for s in range(len(images)):
                r2 = 0.0
                for a in range(3):
                    v[a] = d[a] + images[s, a]
                    r2 += v[a] * v[a]
                if not SELF < r2 < cutoff * cutoff:
                    continue
                r = np.sqrt(r2)
                slope = qq * (screened(g, r)[1] - screened(alpha, r)[1])
                for a in range(3):
                    grad_r[j, a] += slope * v[a]
                    grad_r[i, a] -= slope * v[a]
                    for b in range(3):
                        grad_strain[a, b] += slope * v[a] * v[b]
    return grad_r, grad_strain
