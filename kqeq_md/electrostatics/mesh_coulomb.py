"""The Coulomb operator J by particle-mesh Ewald summation, in the same form for every boundary.

    J q = (eta + kC / (sqrt(pi) s) - 2 alpha kC / sqrt(pi)) q + A q + K q + T q

A: pairs within the cutoff (`real_space`); K: smooth part on the mesh (`mesh`); T: what belongs to k = 0, the
neutralising background of a lattice and the slab term, a few moments of the charges. Open boundaries have no T.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import pi, sqrt

import numpy as np

from kqeq_md.electrostatics.gaussians import background_potential, self_interaction
from kqeq_md.electrostatics.mesh import ParticleMesh, PeriodicConvolution
from kqeq_md.electrostatics.real_space import RealSpace
from kqeq_md.electrostatics.slab import slab_field, slab_potential, slab_strain
from kqeq_md.ranks.halo import SERIAL, Halo, dot, extent
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT

ROUGHNESS = 5e-3
"""Relative error of products on the mesh of `ROUGH_WINDOW`; a test measures less."""


@dataclass(frozen=True, eq=False)
class MeshCoulomb:
    """J at one set of positions, in the order of the neighbour list.

    Attributes:
        positions: Angstrom, shape (n, 3); along periodic vectors any image will do.
        gaussian_width: s_i, Angstrom, shape (n,).
        hardness: eta_i, eV/e^2, shape (n,).
        splitting: alpha, 1/Angstrom.
        pairs: the real-space part A.
        mesh: the smooth part K.
        rough_mesh: the same with few points, or `mesh` itself.
        cell: that repeats along all three vectors, for slabs the padded one; None for open boundaries.
        normal: unit normal of a slab, shape (3,); None for other boundaries.
        halo: how sums go over all ranks.
    """

    positions: Floats
    gaussian_width: Floats
    hardness: Floats
    splitting: float
    pairs: RealSpace
    mesh: ParticleMesh
    rough_mesh: ParticleMesh
    cell: Floats | None = None
    normal: Floats | None = None
    halo: Halo = SERIAL

    @cached_property
    def diagonal(self) -> Floats:
        """Self terms less what the mesh adds to them, eV/e^2, shape (n,)."""
        mesh_self = 2.0 * self.splitting * COULOMB_CONSTANT / sqrt(pi)
        return self_interaction(self.hardness, self.gaussian_width) - mesh_self

    def apply(self, charges: Floats) -> Floats:
        """J q, eV/e, shape (n,)."""
        return self._apply(self.mesh, charges)

    def apply_roughly(self, charges: Floats) -> Floats:
        """J q on the rough mesh, eV/e, shape (n,)."""
        return self._apply(self.rough_mesh, charges)

    @property
    def roughness(self) -> float:
        """Largest error of `apply_roughly`, relative to J q."""
        return 0.0 if self.rough_mesh is self.mesh else ROUGHNESS

    def _apply(self, mesh: ParticleMesh, charges: Floats) -> Floats:
        out = self.diagonal * charges
        out += self.pairs.apply(charges)
        out += mesh.apply(charges)
        return out + self._uniform(charges)

    def field(self, charges: Floats) -> Floats:
        """Field of the charges at the atoms, V/Angstrom, shape (n, 3)."""
        mesh_field = self.mesh.field(self.mesh.potential(charges))
        return self.pairs.field(charges)[0] + mesh_field + self._slab_field(charges)

    def gradient(self, charges: Floats) -> tuple[Floats, Floats]:
        """d(1/2 q.J.q)/dR (n, 3) in eV/Angstrom and d/d(strain) (3, 3) in eV, both at fixed charges."""
        pair_field, strain = self.pairs.field(charges)
        mesh, convolution = self.mesh, self.mesh.convolution
        planes = mesh.spread(charges)
        if isinstance(convolution, PeriodicConvolution):
            planes, mesh_strain = convolution.potential_and_strain(planes, mesh.layout)
            strain += mesh_strain
        else:
            planes = convolution.apply(planes, mesh.layout)
        mesh_field = mesh.field(mesh.layout.hand_out(planes))
        grad_r = -charges[:, None] * (pair_field + mesh_field + self._slab_field(charges))
        if self.cell is None:
            low, high = extent(self.positions, self.halo)
            return grad_r, self.halo.sum((self.positions - 0.5 * (low + high)).T @ grad_r)
        strain = self.halo.sum(strain)
        neutralised = background_potential(self.gaussian_width, charges, self.splitting, self._volume, self.halo)
        strain -= 0.5 * dot(charges, neutralised, self.halo) * np.eye(3)
        if self.normal is not None:
            slab_energy = 0.5 * dot(charges, slab_potential(*self._slab(charges)), self.halo)
            strain = slab_strain(strain, slab_energy, grad_r, self.positions, self.normal, self.halo)
        return grad_r, strain

    @property
    def _volume(self) -> float:
        assert self.cell is not None
        return float(abs(np.linalg.det(self.cell)))

    def _slab(self, charges: Floats) -> tuple[Floats, Floats, Floats, float, float, Halo]:
        assert self.cell is not None
        assert self.normal is not None
        length = float(np.linalg.norm(self.cell[2]))
        return self.positions @ self.normal, self.gaussian_width, charges, length, self._volume / length, self.halo

    def _uniform(self, charges: Floats) -> Floats | float:
        """T q."""
        if self.cell is None:
            return 0.0
        out = background_potential(self.gaussian_width, charges, self.splitting, self._volume, self.halo)
        return out if self.normal is None else out + slab_potential(*self._slab(charges))

    def _slab_field(self, charges: Floats) -> Floats | float:
        if self.normal is None:
            return 0.0
        return np.outer(slab_field(*self._slab(charges)), self.normal)
