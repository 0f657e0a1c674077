"""The smooth part of the Coulomb sum on a particle mesh.

    (K q)_i = sum_k G(k) exp(i k.R_i) sum_j q_j exp(-i k.R_j),   G(k) = kC (4 pi / V) exp(-k^2 / 4 alpha^2) / k^2

Charges are spread to the mesh by a window w, convolved with G / w^^2, and potentials and fields are read off with the
same window, so that K is symmetric and the field is the exact gradient of the energy. The convolution is a Fourier
transform: periodic here, in `free_space` for open boundaries.

References: Hockney and Eastwood, Computer Simulation Using Particles (1988); Essmann et al., J. Chem. Phys. 103, 8577
(1995), doi:10.1063/1.470117.
"""

from __future__ import annotations

from itertools import pairwise
from math import pi
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from kqeq_md.electrostatics.mesh_kernels import mesh_kernels
from kqeq_md.electrostatics.window import Window, transform
from kqeq_md.halo import SERIAL, Halo
from kqeq_md.jit import compiled
from kqeq_md.structure import Floats
from kqeq_md.threads import in_parallel
from kqeq_md.units import COULOMB_CONSTANT

MeshPoints = tuple[int, int, int]


class Convolution(Protocol):
    """What turns charges on mesh points into potentials there."""

    def apply(self, mesh: Floats) -> Floats:
        """Potential, V, from charges, e; both of shape (n_x, n_y, n_z)."""


class ParticleMesh:
    """Charges at given positions on a mesh that spans a cell.

    Args:
        window: what spreads a charge.
        points: mesh points along the three cell vectors, none fewer than the window's support.
        convolution: from charges to potentials on the mesh.
        threads: how many work at once.
        halo: how the charges of all ranks come together on the mesh, the whole of which each of them holds.
    """

    def __init__(
        self, window: Window, points: MeshPoints, convolution: Convolution, threads: int, halo: Halo = SERIAL
    ) -> None:
        self.window, self.points, self.convolution, self.threads = window, points, convolution, threads
        self._halo = halo
        self._kernels = mesh_kernels(window.support)

    def set(self, fractional: Floats, inverse_cell: Floats) -> None:
        """Weights of atoms at fractional coordinates in [0, 1), shape (n, 3)."""
        n = len(fractional)
        self._fractional, self._inverse_cell = fractional, inverse_cell
        self._base = np.empty((n, 3), dtype=np.int32)
        self._weight = np.empty((n, 3, self.window.support))
        edges = [n * block // self.threads for block in range(self.threads + 1)]
        self._blocks = [(a, b) for a, b in pairwise(edges) if b > a] or [(0, 0)]
        points = np.array(self.points)
        in_parallel(
            lambda rows: self._kernels.weigh(
                *rows, fractional, self.window.shape, points, self._base, self._weight
            ),
            self._blocks,
        )  # fmt: skip

    def apply(self, charges: Floats) -> Floats:
        """K q, eV/e, shape (n,)."""
        padded, out = self._padded(self.convolution.apply(self.spread(charges))), np.empty(len(charges))
        in_parallel(lambda rows: self._kernels.interpolate(*rows, self._base, self._weight, padded, out), self._blocks)
        return out

    def spread(self, charges: Floats) -> Floats:
        """Charges on the mesh, e, shape (n_x, n_y, n_z)."""
        nx, ny, nz = self.points

        def one(rows: tuple[int, int]) -> Floats:
            mesh = np.zeros((nx, ny, nz + self.window.support))
            self._kernels.spread(*rows, self._base, self._weight, charges, mesh)
            return mesh

        parts = in_parallel(one, self._blocks)
        for part in parts[1:]:
            parts[0] += part
        mesh = parts[0]
        mesh[:, :, : self.window.support] += mesh[:, :, nz:]
        return self._halo.sum(mesh[:, :, :nz])

    def field(self, potential: Floats) -> Floats:
        """Field at the atoms, V/Angstrom, shape (n, 3), of a potential on the mesh."""
        padded, slope = self._padded(potential), np.empty_like(self._fractional)
        in_parallel(
            lambda rows: self._kernels.differentiate(
                *rows, self._fractional, self._base, self._weight, self.window.shape, padded, slope
            ),
            self._blocks,
        )
        field: Floats = -(slope * np.array(self.points)) @ self._inverse_cell.T
        return field

    def _padded(self, potential: Floats) -> Floats:
        """The mesh with its first points along z once more behind its last ones."""
        return np.concatenate([potential, potential[:, :, : self.window.support]], axis=2)


class PeriodicConvolution:
    """G / w^^2 on the waves of a periodic cell."""

    def __init__(self, cell: Floats, splitting: float, window: Window, points: MeshPoints, threads: int) -> None:
        self.points, self.threads, self.splitting = points, threads, splitting
        nx, ny, nz = points
        self._waves = tuple(2.0 * pi * np.rint(m) for m in (
            np.fft.fftfreq(nx, 1 / nx), np.fft.fftfreq(ny, 1 / ny), np.arange(nz // 2 + 1.0),
        ))  # fmt: skip
        self._inverse = np.linalg.inv(cell)
        damping = []
        for wave, n in zip(self._waves, points, strict=True):
            damped = transform(window.support, window.shape, wave / n) ** 2
            # +k and -k are one wave there: leaving it out, far behind the cutoff, keeps K symmetric in skewed cells
            damped[np.isclose(np.abs(wave), pi * n)] = np.inf
            damping.append(damped)
        prefactor = 4.0 * pi * COULOMB_CONSTANT / float(abs(np.linalg.det(cell)))
        self._influence = periodic_influence(*self._waves, *damping, self._inverse, splitting, prefactor)

    def apply(self, mesh: Floats) -> Floats:
        return self._potential(self._transform(mesh))

    def potential_and_strain(self, mesh: Floats) -> tuple[Floats, Floats]:
        """What `apply` gives, and d(1/2 q.K q)/d(strain) at fixed fractional coordinates, eV, shape (3, 3)."""
        spectrum = self._transform(mesh)
        strain = spectrum_strain(*self._waves, self._inverse, self.splitting, self.points[2], self._influence, spectrum)
        return self._potential(spectrum), strain

    def _transform(self, mesh: Floats) -> NDArray[np.complex128]:
        out: NDArray[np.complex128] = fft.rfftn(mesh, workers=self.threads)
        return out

    def _potential(self, spectrum: NDArray[np.complex128]) -> Floats:
        """Potential on the mesh; the spectrum is used up."""
        spectrum *= self._influence
        out: Floats = fft.irfftn(spectrum, s=self.points, norm="forward", workers=self.threads, overwrite_x=True)
        return out


@compiled
def periodic_influence(
    x: Floats, y: Floats, z: Floats, damping_x: Floats, damping_y: Floats, damping_z: Floats,
    inverse: Floats, splitting: float, prefactor: float,
) -> Floats:  # fmt: skip
    """prefactor exp(-k^2 / 4 alpha^2) / (k^2 w^^2) at k = inverse (x, y, z); zero at k = 0."""
    out = np.empty((len(x), len(y), len(z)))
    k = np.empty(3)
    for a in range(len(x)):
        for b in range(len(y)):
            for c in range(len(z)):
                for d in range(3):
                    k[d] = inverse[d, 0] * x[a] + inverse[d, 1] * y[b] + inverse[d, 2] * z[c]
                k2 = k[0] * k[0] + k[1] * k[1] + k[2] * k[2]
                screened = prefactor * np.exp(-k2 / (4.0 * splitting * splitting)) / k2 if k2 > 0.0 else 0.0
                out[a, b, c] = screened / (damping_x[a] * damping_y[b] * damping_z[c])
    return out


@compiled
def spectrum_strain(
    x: Floats, y: Floats, z: Floats, inverse: Floats, splitting: float, n_z: int, influence: Floats,
    spectrum: NDArray[np.complex128],
) -> Floats:  # fmt: skip
    """sum_k 1/2 G |S|^2 [k (x) k (2 / k^2 + 1 / 2 alpha^2) - 1], both halves of k-space from the stored one."""
    out, energy = np.zeros((3, 3)), 0.0
    k = np.empty(3)
    for a in range(len(x)):
        for b in range(len(y)):
            for c in range(len(z)):
                both = 1.0 if c == 0 or 2 * c == n_z else 2.0
                s = spectrum[a, b, c]
                term = 0.5 * both * influence[a, b, c] * (s.real * s.real + s.imag * s.imag)
                if term == 0.0:
                    continue
                for d in range(3):
                    k[d] = inverse[d, 0] * x[a] + inverse[d, 1] * y[b] + inverse[d, 2] * z[c]
                k2 = k[0] * k[0] + k[1] * k[1] + k[2] * k[2]
                along = term * (2.0 / k2 + 0.5 / (splitting * splitting))
                energy += term
                for d in range(3):
                    for e in range(3):
                        out[d, e] += along * k[d] * k[e]
    for d in range(3):
        out[d, d] -= energy
    return out
