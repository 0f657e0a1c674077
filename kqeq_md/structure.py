"""What goes into the potential and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kqeq_md.errors import StructureError

Floats = NDArray[np.float64]

FARTHEST = 1e9
"""Angstrom. Coordinates beyond it have fewer than seven digits left behind the point."""


def _floats(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """`value` as a read-only float64 array of `shape`; -1 stands for any length."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise StructureError(f"`{name}` must be numbers of shape {shape}: {error}") from None
    if array.ndim != len(shape) or any(want not in (-1, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = "(" + ", ".join("n" if s == -1 else str(s) for s in shape) + ")"
        raise StructureError(f"`{name}` must have shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0]
        place = f" at index {where.tolist()}" if array.ndim else ""
        raise StructureError(f"`{name}` must be finite, got {array[tuple(where)]}{place}")
    array.setflags(write=False)
    return array


def plane(cell: Floats, open_axis: int) -> tuple[Floats, Floats]:
    """The two periodic vectors of a slab, Angstrom, shape (2, 3), and their unit normal, shape (3,).

    They follow the open axis in cyclic order, so that the normal in its place makes a right-handed cell.
    """
    lateral = cell[[(open_axis + 1) % 3, (open_axis + 2) % 3]]
    normal = np.cross(*lateral)
    return lateral, normal / np.linalg.norm(normal)


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms, their boundary, their total charge and the applied static field.

    Args:
        numbers: atomic numbers, shape (n,).
        positions: Angstrom, shape (n, 3).
        cell: lattice vectors as rows, Angstrom, shape (3, 3); None for open boundaries. The vector of a slab's open
            axis is perpendicular to the others; its length has no meaning, and zero becomes the unit normal.
        pbc: periodic along each lattice vector: all True, all False (open), or one False (slab).
        charge: total charge Q, e.
        field: static field F, V/Angstrom, shape (3,); the energy holds -F.mu.
        part: the atoms are those of one rank among several, who may own none.

    Raises:
        StructureError: naming the argument, the rule and the value.
    """

    numbers: NDArray[np.int64]
    positions: Floats
    cell: Floats
    pbc: tuple[bool, bool, bool]
    charge: float
    field: Floats

    def __init__(
        self,
        numbers: ArrayLike,
        positions: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: bool | Sequence[bool] = False,
        charge: float = 0.0,
        field: ArrayLike = (0.0, 0.0, 0.0),
        *,
        part: bool = False,
    ) -> None:
        try:
            z = np.array(numbers)
        except ValueError as error:
            raise StructureError(f"`numbers` must be a list of integers: {error}") from None
        if z.ndim != 1 or (len(z) == 0 and not part) or not np.issubdtype(z.dtype, np.integer):
            raise StructureError(f"`numbers` must be a non-empty list of integers, got shape {z.shape}, {z.dtype}")
        z = z.astype(np.int64)
        z.setflags(write=False)
        axes = tuple(pbc) if isinstance(pbc, Sequence | np.ndarray) else (pbc,) * 3
        if len(axes) != 3:
            raise StructureError(f"`pbc` must be one or three booleans, got {pbc!r}")
        periodic = tuple(bool(axis) for axis in axes)
        if sum(periodic) == 1:
            raise StructureError(
                f"`pbc` must be True for all axes, for two (slab) or for none, got {periodic}: wires are not available"
            )
        lattice = _floats("cell", np.zeros((3, 3)) if cell is None else cell, (3, 3))
        if any(periodic) and np.abs(lattice).max() > FARTHEST:
            raise StructureError(f"`cell` must lie within {FARTHEST:g} Angstrom, got {np.abs(lattice).max():.3g}")
        if sum(periodic) == 2:
            lattice = _slab_cell(lattice, periodic.index(False))
        if all(periodic) and abs(np.linalg.det(lattice)) < 1e-6:
            raise StructureError(f"`cell` must have a volume for pbc=True, got {lattice.tolist()}")
        set_field = object.__setattr__  # the one place where the frozen fields are set
        set_field(self, "numbers", z)
        set_field(self, "positions", _floats("positions", positions, (len(z), 3)))
        set_field(self, "cell", lattice)
        set_field(self, "pbc", periodic)
        set_field(self, "charge", float(_floats("charge", charge, ())))
        set_field(self, "field", _floats("field", field, (3,)))

    def __len__(self) -> int:
        return len(self.numbers)

    def in_place_of(self, other: Structure) -> Structure:
        """These atoms in the cell, boundary, charge and field of another structure; nothing is copied or checked."""
        out = object.__new__(Structure)
        for name in ("numbers", "positions"):
            object.__setattr__(out, name, getattr(self, name))
        for name in ("cell", "pbc", "charge", "field"):
            object.__setattr__(out, name, getattr(other, name))
        return out

    def moved(self, positions: ArrayLike, cell: ArrayLike | None = None) -> Structure:
        """The same atoms, boundary, charge and field at other positions, and in another cell unless it is None.

        Only what is new is checked: in a step of 200 atoms that is felt.

        Raises:
            StructureError: as for a new structure.
        """
        if cell is not None and not np.array_equal(cell, self.cell):
            return Structure(self.numbers, positions, cell, self.pbc, self.charge, self.field)
        out = copy(self)
        object.__setattr__(out, "positions", _floats("positions", positions, (len(self), 3)))
        return out

    @property
    def boundary(self) -> str:
        """ "open", "slab" or "periodic": no, two or three periodic axes."""
        return {0: "open", 2: "slab", 3: "periodic"}[sum(self.pbc)]

    @property
    def periodic(self) -> bool:
        """True for a cell that repeats along all three lattice vectors, False for slabs and open boundaries."""
        return all(self.pbc)

    @property
    def open_axis(self) -> int | None:
        """The lattice vector along which a slab does not repeat; None for the other boundaries."""
        return self.pbc.index(False) if self.boundary == "slab" else None

    @property
    def normal(self) -> Floats:
        """Unit normal of a slab, shape (3,).

        Raises:
            StructureError: not a slab.
        """
        if self.open_axis is None:
            raise StructureError(f"`normal` needs a slab (two periodic axes), got pbc = {self.pbc}")
        return plane(self.cell, self.open_axis)[1]

    @property
    def volume(self) -> float:
        """Volume of the cell, Angstrom^3; that of a slab is as long as its open vector happens to be."""
        return float(abs(np.linalg.det(self.cell)))


def _slab_cell(cell: Floats, open_axis: int) -> Floats:
    """The cell of a slab, checked, with a vector along the open axis."""
    lateral = np.delete(cell, open_axis, axis=0)
    if np.linalg.norm(np.cross(*lateral)) < 1e-6:
        raise StructureError(f"`cell` must have an area: periodic vectors are parallel or zero, got {lateral.tolist()}")
    normal, out = plane(cell, open_axis)[1], cell.copy()
    length = np.linalg.norm(cell[open_axis])
    if length < 1e-6:
        out[open_axis] = normal
    elif np.linalg.norm(cell[open_axis] - (cell[open_axis] @ normal) * normal) > 1e-6 * length:
        raise StructureError(
            f"`cell` vector {open_axis} must be perpendicular to the periodic ones, as `pbc` leaves it open, "
            f"got {cell.tolist()}"
        )
    out.setflags(write=False)
    return out


@dataclass(frozen=True, eq=False)
class Result:
    """What `Potential.compute` returns; fields that were not asked for are None.

    Attributes:
        energy: E, eV, field term included.
        charges: q, e, shape (n,); zeros from a model without charges.
        energies: energy per atom, eV, shape (n,); they add up to `energy`.
        forces: -dE/dR, eV/Angstrom, shape (n, 3).
        virial: W = -dE/d(strain), symmetrised, eV, shape (3, 3), field term included; None where a field leaves it
            undefined.
        dipole: mu about the coordinate origin, e Angstrom, shape (3,), where it is defined: open boundaries, whole
            fragments, split charges (`charges.field`).
        reference_residual: what learned reference charges of split charges miss of the sums that they should have and
            is spread evenly, e, shape (n_groups,): one entry for the structure, or one per fragment.
        short_range_energy: E_short, eV.
        charge_energy: chi.q + 1/2 q.J q and the energy of bonds, eV.
        field_energy: -F.mu, eV. These three add up to `energy`.
        iterations: products with J that the charges took beside the first one; 0 by factorisation.
        unsymmetrized_virial: -dE/d(eps_ab) for r_a + eps_ab r_b, eV, shape (3, 3); a field feels turns, so that it
            differs from `virial` by half the torque, (F_a mu_b - mu_a F_b)/2. Cells of LAMMPS and i-PI stay
            triangular: they need its upper triangle.
    """

    energy: float
    charges: Floats
    energies: Floats | None = None
    forces: Floats | None = None
    virial: Floats | None = None
    dipole: Floats | None = None
    reference_residual: Floats | None = None
    short_range_energy: float = 0.0
    charge_energy: float = 0.0
    field_energy: float = 0.0
    iterations: int = 0
    unsymmetrized_virial: Floats | None = None
