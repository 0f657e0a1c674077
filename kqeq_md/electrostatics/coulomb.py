"""The Coulomb operator J that the boundary, the size and the accuracy ask for."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.free_space import FreeConvolution
from kqeq_md.electrostatics.lattice import greedy_reduction
from kqeq_md.electrostatics.mesh import Convolution, MeshPoints, ParticleMesh, PeriodicConvolution
from kqeq_md.electrostatics.mesh_coulomb import MeshCoulomb
from kqeq_md.electrostatics.pair_table import PairTable, pair_table
from kqeq_md.electrostatics.plan import FINEST, ROUGH_WINDOW, Plan, plan_mesh
from kqeq_md.electrostatics.real_space import RealSpace
from kqeq_md.electrostatics.slab import padded_cell, padded_length, rung
from kqeq_md.electrostatics.window import Window
from kqeq_md.errors import StructureError
from kqeq_md.latest import Latest
from kqeq_md.neighbours import NeighbourList
from kqeq_md.structure import Floats, Structure, plane
from kqeq_md.threads import worthwhile

SMALL = 400
"""Atoms. Open structures up to this size are summed directly: J is factorised faster than a mesh is set up."""

LARGE = 1000
"""Atoms. From here on a second, rough mesh is worth its setup: most products with J are corrections."""

PER_DIRECT_PAIR = 6.0
"""Nanoseconds, in the currency of `plan`."""


class CoulombGradient(Protocol):
    """What forces need of E(q) = 1/2 q.J.q at one set of positions."""

    def gradient(self, charges: Floats) -> tuple[Floats, Floats]:
        """dE/dR (n, 3) in eV/Angstrom and dE/d(strain) (3, 3) in eV, both at fixed charges."""


class Coulomb(CoulombGradient, Protocol):
    """The operator J of Gaussian charges at one set of positions."""

    @property
    def gaussian_width(self) -> Floats:
        """s_i, Angstrom, shape (n,)."""

    @property
    def hardness(self) -> Floats:
        """eta_i, eV/e^2, shape (n,)."""

    @property
    def roughness(self) -> float:
        """Largest error of `apply_roughly`, relative to J q; 0 where both products are the same."""

    def apply(self, charges: Floats) -> Floats:
        """J q, eV/e, shape (n,)."""

    def apply_roughly(self, charges: Floats) -> Floats:
        """J q with little work, for corrections of charges that are nearly right; symmetric and positive like J."""

    def field(self, charges: Floats) -> Floats:
        """Field of the charges at the atoms, V/Angstrom, shape (n, 3); forces are q times it."""


class Electrostatics:
    """Makes the operator J for one structure after the other; keeps what two of them share.

    Args:
        gaussian_width: s_a of each element, Angstrom, shape (n_species,).
        hardness: eta_a of each element, eV/e^2, shape (n_species,).
        accuracy: target rms force error, eV/Angstrom. Splitting, cutoff and mesh follow from it and from the size of
            the charges, which is taken as 1 e until `serves` has seen larger ones.
        vacuum: between the images of a slab, Angstrom; None for as much as the accuracy needs.
        threads: how many work at once, where there are atoms enough.
    """

    def __init__(
        self,
        gaussian_width: Floats,
        hardness: Floats,
        accuracy: float,
        vacuum: float | None = None,
        threads: int = 1,
    ) -> None:
        self.gaussian_width, self.hardness = gaussian_width, hardness
        self.accuracy, self.vacuum, self.threads = accuracy, vacuum, threads
        self._widest = float(gaussian_width.max())
        self._largest_charge = 1.0
        self._pairs = RealSpace()
        self._open_plan = Latest(self._make_open_plan)
        self._lattice_plan = Latest(self._make_lattice_plan)
        self._table = Latest(self._make_table, keep=2)
        self._periodic = Latest(self._make_periodic, keep=2)
        self._free = Latest(self._make_free, keep=4)

    def plan(self, structure: Structure) -> tuple[Plan | None, Floats]:
        """How to sum, None for directly, and the cell of the mesh, Angstrom, shape (3, 3).

        Raises:
            StructureError: the cell needs a mesh beyond reason.
            ChargeError: too little `vacuum` is given for a slab.
        """
        if structure.boundary == "open":
            extent = [rung(length) for length in np.ptp(structure.positions, axis=0)]
            return self._open_plan(len(structure), self._accuracy_for_unit_charges, *extent)
        lattice, normal = structure.cell, None
        thickness = 0.0
        if structure.open_axis is not None:
            lattice, normal = plane(structure.cell, structure.open_axis)
            thickness = rung(float(np.ptp(structure.positions @ normal)))
        plan, cell = self._lattice_plan(
            len(structure), self._accuracy_for_unit_charges, lattice.tobytes(), thickness,
            None if normal is None else tuple(normal.tolist()),
        )  # fmt: skip
        if plan is None:
            raise StructureError(
                "`cell` must not be so large or flat, or `accuracy` so small, that no mesh of reasonable size serves: "
                f"got {structure.cell.tolist()} for {len(structure)} atoms ({np.linalg.norm(cell, axis=1).round(1)} "
                f"Angstrom with vacuum), {self.accuracy:g} eV/Angstrom for charges up to {self._largest_charge:g} e"
            )
        return plan, cell

    def serves(self, charges: Floats) -> bool:
        """True if the operator of the last `at` is accurate enough for these charges (e, shape (n,)).

        Errors of forces grow like the square of the rms charge. Where it exceeds 1 e, plans are made for the next
        power of two; where it has grown beyond that, `cutoff` and `at` have to be asked again.
        """
        size = float(np.sqrt(np.mean(charges**2)))
        needed = 2.0 ** np.ceil(np.log2(max(size, 1.0))) if np.isfinite(size) else 1.0
        previous, self._largest_charge = self._largest_charge, needed
        return needed <= previous

    @property
    def _accuracy_for_unit_charges(self) -> float:
        return max(self.accuracy / self._largest_charge**2, FINEST)

    def _make_open_plan(self, n: int, accuracy: float, *extent: float) -> tuple[Plan | None, Floats]:
        lengths = np.array(extent) + 1.0
        plan = None
        if n > SMALL:
            plan = plan_mesh(n, lengths, float(np.prod(lengths)), self._widest, accuracy, doubled=True)
            if plan is not None and plan.cost > 0.5 * PER_DIRECT_PAIR * n * n:
                plan = None
        return plan, np.diag(lengths)

    def _make_lattice_plan(
        self, n: int, accuracy: float, lattice: bytes, thickness: float, normal: tuple[float, ...] | None
    ) -> tuple[Plan | None, Floats]:
        """For a slab the vacuum must exceed the cutoff, which depends on the volume: a short iteration that grows."""
        vectors = np.frombuffer(lattice).reshape(-1, 3)
        if normal is None:
            cell = greedy_reduction(vectors)
            return self._mesh_plan(n, cell, accuracy), cell
        cutoff = 0.0
        while True:
            length = padded_length(np.array([0.0, thickness]), vectors, self._widest, accuracy, cutoff, self.vacuum)
            cell = padded_cell(vectors, np.array(normal), length)
            plan = self._mesh_plan(n, cell, accuracy)
            if plan is None or plan.cutoff <= cutoff:
                return plan, cell
            cutoff = plan.cutoff

    def _mesh_plan(self, n: int, cell: Floats, accuracy: float) -> Plan | None:
        volume = float(abs(np.linalg.det(cell)))
        return plan_mesh(n, np.linalg.norm(cell, axis=1), volume, self._widest, accuracy, doubled=False)

    def cutoff(self, structure: Structure) -> float:
        """How far the pairs reach that `at` needs, Angstrom."""
        plan, _ = self.plan(structure)
        return 0.0 if plan is None else plan.cutoff

    def at(self, structure: Structure, species: NDArray[np.int64], neighbours: NeighbourList) -> Coulomb:
        """J for a structure whose pairs up to `cutoff` are in `neighbours`.

        Args:
            structure: the atoms, in the order of `neighbours`.
            species: element index of each atom, shape (n,).
            neighbours: up to date for `structure`.
        """
        width, hardness = self.gaussian_width[species], self.hardness[species]
        positions = neighbours.positions[: len(structure)]
        plan, cell = self.plan(structure)
        if plan is None:
            return DirectCoulomb(positions, width, hardness)
        threads = worthwhile(self.threads, len(structure))
        table = self._table(plan.splitting, plan.cutoff, self._accuracy_for_unit_charges)
        self._pairs.set(neighbours, species, table, threads)
        given = (structure, positions, plan.splitting, cell, plan.cutoff, threads)
        meshes = [self._mesh(*given, plan.window, plan.points)]
        if len(structure) >= LARGE:
            meshes.append(self._mesh(*given, ROUGH_WINDOW, plan.rough_points))
        return MeshCoulomb(
            positions, width, hardness, plan.splitting, self._pairs, meshes[0],
            rough_mesh=meshes[-1],
            cell=None if structure.boundary == "open" else cell,
            normal=structure.normal if structure.boundary == "slab" else None,
        )  # fmt: skip

    def _mesh(
        self, structure: Structure, positions: Floats, splitting: float, cell: Floats, reach: float, threads: int,
        window: Window, points: MeshPoints,
    ) -> ParticleMesh:  # fmt: skip
        convolution: Convolution
        if structure.boundary == "open":
            spacing = window.coarseness / splitting
            convolution = self._free(points, spacing, splitting, reach, window, threads)
            # mesh points stay where they are in space while atoms move
            origin: Floats = spacing * np.floor(positions.min(axis=0) / spacing)
            mesh_cell = np.diag(np.multiply(spacing, points))
        else:
            convolution = self._periodic(cell.tobytes(), splitting, window, points, threads)
            origin, mesh_cell = np.zeros(3), cell
        mesh = ParticleMesh(window, points, convolution, threads)
        inverse = np.linalg.inv(mesh_cell)
        fractional: Floats = ((positions - origin) @ inverse) % 1.0
        mesh.set(fractional, inverse)
        return mesh

    def _make_table(self, splitting: float, cutoff: float, accuracy: float) -> PairTable:
        return pair_table(self.gaussian_width, splitting, cutoff, accuracy)

    def _make_periodic(
        self, cell: bytes, splitting: float, window: Window, points: MeshPoints, threads: int
    ) -> PeriodicConvolution:
        return PeriodicConvolution(np.frombuffer(cell).reshape(3, 3), splitting, window, points, threads)

    def _make_free(
        self, points: MeshPoints, spacing: float, splitting: float, reach: float, window: Window, threads: int
    ) -> FreeConvolution:
        return FreeConvolution(points, spacing, splitting, reach, window, threads)
