"""The Coulomb operator J that the boundary, the size and the accuracy ask for."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kqeq_md.electrostatics.direct import DirectCoulomb
from kqeq_md.electrostatics.free_space import FreeConvolution
from kqeq_md.electrostatics.lattice import greedy_reduction
from kqeq_md.electrostatics.mesh import Convolution, ParticleMesh, PeriodicConvolution
from kqeq_md.electrostatics.mesh_coulomb import MeshCoulomb
from kqeq_md.electrostatics.mesh_layout import MeshPoints, edges
from kqeq_md.electrostatics.pair_table import PairTable, pair_table
from kqeq_md.electrostatics.plan import FINEST, ROUGH_WINDOW, Plan, largest_mesh, plan_mesh
from kqeq_md.electrostatics.real_space import RealSpace
from kqeq_md.electrostatics.slab import padded_cell, padded_length, rung
from kqeq_md.electrostatics.window import Window
from kqeq_md.errors import StructureError
from kqeq_md.machine.latest import Latest
from kqeq_md.machine.threads import worthwhile
from kqeq_md.neighbours.half_list import Neighbours
from kqeq_md.ranks.halo import SERIAL, Halo, extent, norm, total
from kqeq_md.structure import Floats, Structure, plane

SMALL = 400
"""Atoms. Open structures up to this size are summed directly: J is factorised faster than a mesh is set up."""

LARGE = 1000
"""Atoms. From here on a second, rough mesh is worth its setup: most products with J are corrections."""

BREATHS = np.linspace(0.93, 1.07, 29)
"""Factors by which edges of a cell may change in a run on several ranks."""

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
        self._longest: tuple[tuple[Any, ...], float] | None = None
        self._pairs = RealSpace()
        self._open_plan = Latest(self._make_open_plan)
        self._lattice_plan = Latest(self._make_lattice_plan)
        self._table = Latest(self._make_table, keep=2)
        self._periodic = Latest(self._make_periodic, keep=2)
        self._free = Latest(self._make_free, keep=4)

    def plan(self, structure: Structure, halo: Halo = SERIAL, longest: float = inf) -> tuple[Plan | None, Floats]:
        """How to sum, None for directly, and the cell of the mesh, Angstrom, shape (3, 3).

        Args:
            structure: the owned atoms.
            halo: of the ranks that own the others.
            longest: cutoff that pairs can have, Angstrom.

        Raises:
            StructureError: the cell needs a mesh beyond reason.
            ChargeError: too little `vacuum` is given for a slab.
        """
        n = _count(structure, halo)
        if structure.boundary == "open":
            lengths = [rung(length) for length in _lengths(structure.positions, halo)]
            return self._open_plan(n, longest, self._accuracy_for_unit_charges, *lengths)
        lattice, normal = structure.cell, None
        thickness = 0.0
        if structure.open_axis is not None:
            lattice, normal = plane(structure.cell, structure.open_axis)
            thickness = rung(float(_lengths((structure.positions @ normal)[:, None], halo)[0]))
        plan, cell = self._lattice_plan(
            n, longest, self._accuracy_for_unit_charges, lattice.tobytes(), thickness,
            None if normal is None else tuple(normal.tolist()),
        )  # fmt: skip
        if plan is None:
            raise StructureError(
                "`cell` must not be so large or flat, or `accuracy` so small, that no mesh of reasonable size serves "
                f"({largest_mesh(n)} points): got {structure.cell.tolist()} for {n} atoms "
                f"({np.linalg.norm(cell, axis=1).round(1)} Angstrom with vacuum), "
                f"{self.accuracy:g} eV/Angstrom for charges up to {self._largest_charge:g} e"
                + (f", ghosts within {longest:.4g} Angstrom" if longest < inf else "")
            )
        return plan, cell

    def serves(self, charges: Floats, halo: Halo = SERIAL) -> bool:
        """True if the operator of the last `at` is accurate enough for these charges (e, shape (n,)).

        Errors of forces grow like the square of the rms charge. Where it exceeds 1 e, plans are made for the next
        power of two; where it has grown beyond that, `cutoff` and `at` have to be asked again.
        """
        size = norm(charges, halo) / sqrt(total(len(charges), halo))
        needed = 2.0 ** np.ceil(np.log2(max(size, 1.0))) if np.isfinite(size) else 1.0
        previous, self._largest_charge = self._largest_charge, needed
        return needed <= previous

    @property
    def _accuracy_for_unit_charges(self) -> float:
        return max(self.accuracy / self._largest_charge**2, FINEST)

    def _make_open_plan(self, n: int, longest: float, accuracy: float, *extent: float) -> tuple[Plan | None, Floats]:
        lengths = np.array(extent) + 1.0
        plan = None
        if n > SMALL:
            plan = plan_mesh(n, lengths, float(np.prod(lengths)), self._widest, accuracy, doubled=True, longest=longest)
            if plan is not None and plan.cost > 0.5 * PER_DIRECT_PAIR * n * n:
                plan = None
        return plan, np.diag(lengths)

    def _make_lattice_plan(
        self, n: int, longest: float, accuracy: float, lattice: bytes, thickness: float,
        normal: tuple[float, ...] | None,
    ) -> tuple[Plan | None, Floats]:  # fmt: skip
        """For a slab the vacuum must exceed the cutoff, which depends on the volume: a short iteration that grows."""
        vectors = np.frombuffer(lattice).reshape(-1, 3)
        if normal is None:
            cell = greedy_reduction(vectors)
            return self._mesh_plan(n, cell, accuracy, longest), cell
        cutoff = 0.0
        while True:
            length = padded_length(np.array([0.0, thickness]), vectors, self._widest, accuracy, cutoff, self.vacuum)
            cell = padded_cell(vectors, np.array(normal), length)
            plan = self._mesh_plan(n, cell, accuracy, longest)
            if plan is None or plan.cutoff <= cutoff:
                return plan, cell
            cutoff = plan.cutoff

    def _mesh_plan(self, n: int, cell: Floats, accuracy: float, longest: float) -> Plan | None:
        volume = float(abs(np.linalg.det(cell)))
        lengths = np.linalg.norm(cell, axis=1)
        return plan_mesh(n, lengths, volume, self._widest, accuracy, doubled=False, longest=longest)

    def cutoff(self, structure: Structure, halo: Halo = SERIAL, longest: float = inf) -> float:
        """How far the pairs reach that `at` needs, Angstrom; 0 where it sums directly over all atoms."""
        plan, _ = self.plan(structure, halo, longest)
        return 0.0 if plan is None else plan.cutoff

    def longest_cutoff(self, structure: Structure, halo: Halo) -> float:
        """The largest `cutoff` while all edges of the cell, or one of them, change by `BREATHS`, Angstrom."""
        open_axes = ~np.array(structure.pbc)
        lengths = np.where(open_axes, _lengths(structure.positions, halo), np.linalg.norm(structure.cell, axis=1))
        # many short runs in a row have the same
        key = (_count(structure, halo), structure.pbc, self._largest_charge, *(rung(length) for length in lengths))
        if self._longest is None or self._longest[0] != key:
            deforms = [np.diag(np.where(axes, x, 1.0)) for axes in (*np.eye(3), np.ones(3)) for x in BREATHS]
            cutoffs = [self.cutoff(_deformed(structure, deform), halo) for deform in deforms]
            self._longest = key, max(cutoffs)
        return self._longest[1]

    def at(
        self, structure: Structure, species_all: NDArray[np.int64], neighbours: Neighbours,
        halo: Halo = SERIAL, longest: float = inf,
    ) -> Coulomb:  # fmt: skip
        """J for a structure whose pairs up to `cutoff` are in `neighbours`.

        Args:
            structure: the owned atoms, in the order of `neighbours`.
            species_all: element index of owned atoms and ghosts, shape (n_all,).
            neighbours: up to date for `structure`.
            halo: of the ranks that own the other atoms; where all are summed over directly, one process owns them.
            longest: as for `cutoff`.
        """
        species = species_all[: len(structure)]
        width, hardness = self.gaussian_width[species], self.hardness[species]
        positions = neighbours.positions[: len(structure)]
        plan, cell = self.plan(structure, halo, longest)
        if plan is None:
            return DirectCoulomb(positions, width, hardness)
        threads = worthwhile(self.threads, len(structure))
        table = self._table(plan.splitting, plan.cutoff, self._accuracy_for_unit_charges)
        self._pairs.set(neighbours, species_all, table, threads, halo)
        given = (structure, positions, plan.splitting, cell, plan.cutoff, threads, halo)
        meshes = [self._mesh(*given, plan.window, plan.points)]
        if _count(structure, halo) >= LARGE:
            meshes.append(self._mesh(*given, ROUGH_WINDOW, plan.rough_points))
        return MeshCoulomb(
            positions, width, hardness, plan.splitting, self._pairs, meshes[0],
            rough_mesh=meshes[-1],
            cell=None if structure.boundary == "open" else cell,
            normal=structure.normal if structure.boundary == "slab" else None,
            halo=halo,
        )  # fmt: skip

    def _mesh(
        self, structure: Structure, positions: Floats, splitting: float, cell: Floats, reach: float, threads: int,
        halo: Halo, window: Window, points: MeshPoints,
    ) -> ParticleMesh:  # fmt: skip
        convolution: Convolution
        if structure.boundary == "open":
            spacing = window.coarseness / splitting
            rows = _rows(2 * points[1], halo)
            convolution = self._free(points, spacing, splitting, reach, window, threads, rows)
            # mesh points stay where they are in space while atoms move
            origin: Floats = spacing * np.floor(extent(positions, halo)[0] / spacing)
            mesh_cell = np.diag(np.multiply(spacing, points))
        else:
            rows = _rows(points[1], halo)
            convolution = self._periodic(cell.tobytes(), splitting, window, points, threads, rows)
            origin, mesh_cell = np.zeros(3), cell
        mesh = ParticleMesh(window, points, convolution, threads)
        inverse = np.linalg.inv(mesh_cell)
        mesh.set((positions - origin) @ inverse, inverse, halo)
        return mesh

    def _make_table(self, splitting: float, cutoff: float, accuracy: float) -> PairTable:
        return pair_table(self.gaussian_width, splitting, cutoff, accuracy)

    def _make_periodic(
        self, cell: bytes, splitting: float, window: Window, points: MeshPoints, threads: int,
        rows: tuple[int, int],
    ) -> PeriodicConvolution:  # fmt: skip
        return PeriodicConvolution(np.frombuffer(cell).reshape(3, 3), splitting, window, points, threads, rows)

    def _make_free(
        self, points: MeshPoints, spacing: float, splitting: float, reach: float, window: Window, threads: int,
        rows: tuple[int, int],
    ) -> FreeConvolution:  # fmt: skip
        return FreeConvolution(points, spacing, splitting, reach, window, threads, rows)


def _deformed(structure: Structure, edges: Floats) -> Structure:
    """Cell vectors, and positions along open axes, multiplied by the diagonal of a matrix, shape (3, 3)."""
    along = np.where(structure.pbc, 1.0, np.diag(edges))
    return Structure(structure.numbers, structure.positions * along, edges @ structure.cell, structure.pbc, part=True)


def _count(structure: Structure, halo: Halo) -> int:
    """Atoms of all ranks."""
    return int(total(len(structure), halo))


def _rows(n_waves: int, halo: Halo) -> tuple[int, int]:
    """Waves along y of this rank, from the first to before the last."""
    shares = edges(n_waves, halo.size)
    return shares[halo.rank], shares[halo.rank + 1]


def _lengths(positions: Floats, halo: Halo) -> Floats:
    """From the first to the last atom of all ranks along each column."""
    low, high = extent(positions, halo)
    return high - low
