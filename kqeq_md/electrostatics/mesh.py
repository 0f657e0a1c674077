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
from kqeq_md.electrostatics.mesh_layout import MeshLayout, MeshPoints, SharedMesh, Waves, WholeMesh
from kqeq_md.electrostatics.window import Window, transform
from kqeq_md.machine.jit import compiled
from kqeq_md.machine.threads import in_parallel
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT


class Convolution(Protocol):
    """What turns charges on mesh points into potentials there."""

    def apply(self, planes: Floats, layout: MeshLayout) -> Floats:
        """Potential, V, from charges, e, both on the planes of this process, shape (n_x here, n_y, n_z)."""


class ParticleMesh:
    """Charges at given positions on a mesh that spans a cell.

    Args:
        window: what spreads a charge.
        points: mesh points along the three cell vectors, none fewer than the window's support.
        convolution: from charges to potentials on the mesh.
        threads: how many work at once.
    """

    layout: MeshLayout

    def __init__(self, window: Window, points: MeshPoints, convolution: Convolution, threads: int) -> None:
        self.window, self.points, self.convolution, self.threads = window, points, convolution, threads
        self._kernels = mesh_kernels(window.support)

    def set(self, fractional: Floats, inverse_cell: Floats, halo: Halo = SERIAL) -> None:
        """Weights of atoms at fractional coordinates, shape (n, 3).

        Args:
            fractional: of any image of each atom in one process; of owned atoms beside each other on several ranks.
            inverse_cell: 1/Angstrom, shape (3, 3).
            halo: of the ranks.
        """
        support, n = self.window.support, len(fractional)
        if halo.size == 1:
            self.layout = WholeMesh(self.points, support, fractional)
        else:
            self.layout = SharedMesh(self.points, support, fractional, halo)
        self._inverse_cell = inverse_cell
        self._base = np.empty((n, 3), dtype=np.int32)
        self._weight = np.empty((n, 3, support))
        edges = [n * block // self.threads for block in range(self.threads + 1)]
        self._blocks = [(a, b) for a, b in pairwise(edges) if b > a] or [(0, 0)]
        in_parallel(
            lambda rows: self._kernels.weigh(
                *rows, self.layout.coordinates, self.window.shape, self.layout.last, self._base, self._weight
            ),
            self._blocks,
        )  # fmt: skip

    def apply(self, charges: Floats) -> Floats:
        """K q, eV/e, shape (n,)."""
        potential, out = self.potential(charges), np.empty(len(charges))
        in_parallel(
            lambda rows: self._kernels.interpolate(*rows, self._base, self._weight, potential, out), self._blocks
        )
        return out

    def potential(self, charges: Floats) -> Floats:
        """Potential of the charges on the points of the layout, V."""
        return self.layout.hand_out(self.convolution.apply(self.spread(charges), self.layout))

    def spread(self, charges: Floats) -> Floats:
        """Charges on the planes of this process, e, shape (n_x here, n_y, n_z)."""

        def one(rows: tuple[int, int]) -> Floats:
            mesh = np.zeros(self.layout.shape)
            self._kernels.spread(*rows, self._base, self._weight, charges, mesh)
            return mesh

        parts = in_parallel(one, self._blocks)
        for part in parts[1:]:
            parts[0] += part
        return self.layout.collect(parts[0])

    def field(self, potential: Floats) -> Floats:
        """Field at the atoms, V/Angstrom, shape (n, 3), of a potential on the points of the layout."""
        coordinates = self.layout.coordinates
        slope = np.empty_like(coordinates)
        in_parallel(
            lambda rows: self._kernels.differentiate(
                *rows, coordinates, self._base, self._weight, self.window.shape, potential, slope
            ),
            self._blocks,
        )
        field: Floats = -(slope * np.array(self.points)) @ self._inverse_cell.T
        return field


class PeriodicConvolution:
    """G / w^^2 on the waves of a periodic cell.

    Args:
        cell: Angstrom, shape (3, 3).
        splitting: alpha, 1/Angstrom.
        window: what spreads the charges.
        points: of the mesh along the cell vectors.
        threads: of the Fourier transforms.
        rows: waves along y that this process has, from the first to before the last; None for all.
    """

    def __init__(
        self, cell: Floats, splitting: float, window: Window, points: MeshPoints, threads: int,
        rows: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self.points, self.threads, self.splitting = points, threads, splitting
        nx, ny, nz = points
        frequencies = [np.fft.fftfreq(nx, 1 / nx), np.fft.fftfreq(ny, 1 / ny), np.arange(nz // 2 + 1.0)]
        self._waves, damping = [2.0 * pi * np.rint(m) for m in frequencies], []
        for wave, n in zip(self._waves, points, strict=True):
            damped = transform(window.support, window.shape, wave / n) ** 2
            # +k and -k are one wave there: leaving it out, far behind the cutoff, keeps K symmetric in skewed cells
            damped[np.isclose(np.abs(wave), pi * n)] = np.inf
            damping.append(damped)
        if rows is not None:
            self._waves[1], damping[1] = (values[slice(*rows)] for values in (self._waves[1], damping[1]))
        self._inverse = np.linalg.inv(cell)
        prefactor = 4.0 * pi * COULOMB_CONSTANT / float(abs(np.linalg.det(cell)))
        self._influence = periodic_influence(*self._waves, *damping, self._inverse, splitting, prefactor)

    def apply(self, planes: Floats, layout: MeshLayout) -> Floats:
        return self._potential(self._spectrum(planes, layout), layout)

    def potential_and_strain(self, planes: Floats, layout: MeshLayout) -> tuple[Floats, Floats]:
        """What `apply` gives, and d(1/2 q.K q)/d(strain) of the waves of this process at fixed fractional coordinates,
        eV, shape (3, 3)."""
        spectrum = self._spectrum(planes, layout)
        strain = spectrum_strain(*self._waves, self._inverse, self.splitting, self.points[2], self._influence, spectrum)
        return self._potential(spectrum, layout), strain

    def _spectrum(self, planes: Floats, layout: MeshLayout) -> Waves:
        """S(k), shape (n_x, rows of waves along y, n_z // 2 + 1)."""
        in_planes = fft.rfft2(planes, axes=(1, 2), workers=self.threads)
        out: Waves = fft.fft(layout.columns(in_planes), axis=0, workers=self.threads, overwrite_x=True)
        return out

    def _potential(self, spectrum: Waves, layout: MeshLayout) -> Floats:
        """Potential on planes; the spectrum is used up."""
        _, ny, nz = self.points
        spectrum *= self._influence
        columns = fft.ifft(spectrum, axis=0, norm="forward", workers=self.threads, overwrite_x=True)
        out: Floats = fft.irfft2(
            layout.planes(columns, ny), (ny, nz), axes=(1, 2), norm="forward", workers=self.threads, overwrite_x=True
        )
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
