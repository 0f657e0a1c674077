"""The search behind a neighbour list: images of atoms around a cell, points in bins, pairs of points.

Only images with a lattice vector S > 0 (its first component that is not zero is positive) are written: the two images
of a pair differ by the sign of S, so that every pair stands exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kqeq_md.errors import StructureError
from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats

Ints = NDArray[np.int64]
Rows = NDArray[np.uint32]
Shifts = NDArray[np.int32]

BINS_PER_REACH = 2
"""Smaller bins hold fewer pairs beyond the reach, but there are more of them."""

MOST_BINS = 2**20
"""Bins along one axis: the index of a bin in three dimensions fits into 64 bits."""

MOST_TRANSLATIONS = 10**8
MOST_IMAGES = 2 * 10**7
MOST_PAIRS = 10**9
"""Bounds of what one process can hold (1 GB of images, 4 GB of pairs): beyond them the cell is a mistake."""


def images_within(
    atoms: Floats, fractions: Floats, lattice: Floats, pbc: tuple[bool, ...], reach: float
) -> tuple[Rows, Shifts]:
    """Owners of atoms and images, shape (n_all,), and the lattice vector S > 0 of each image, shape (n_images, 3).

    An image is written if it lies within `reach` (Angstrom) of the box around the atoms, the box
    along the lattice vectors as well as the one along x, y, z.

    Raises:
        StructureError: more images than memory holds.
    """
    margin = reach * np.linalg.norm(np.linalg.inv(lattice), axis=0) * (1 + 1e-9)  # at least the rounding of the wrap
    low, high = fractions.min(axis=0) - margin, fractions.max(axis=0) + margin
    box_low, box_high = atoms.min(axis=0) - reach, atoms.max(axis=0) + reach
    most = np.where(pbc, np.floor(np.ptp(fractions, axis=0) + margin), 0.0)
    count = np.prod(2.0 * most + 1.0)
    owner, shifts = np.empty(0, dtype=np.uint32), np.empty((0, 3), dtype=np.int32)
    if count <= MOST_TRANSLATIONS:
        search = (atoms, fractions, lattice, most.astype(np.int64), low, high, box_low, box_high, reach)
        count = images_in_box(*search, owner, shifts)
        if count <= MOST_IMAGES:
            owner, shifts = np.empty(count, dtype=np.uint32), np.empty((count, 3), dtype=np.int32)
            images_in_box(*search, owner, shifts)
    if count > MOST_IMAGES:
        raise StructureError(
            f"`cell` must be larger: neighbours within {reach:g} Angstrom need more than {MOST_IMAGES:g} images "
            f"of the atoms, got {lattice.tolist()}"
        )
    return np.concatenate([np.arange(len(atoms), dtype=np.uint32), owner]), shifts


@dataclass(frozen=True)
class Bins:
    """Points sorted into boxes; only boxes that hold points cost memory.

    Attributes:
        row: the points, sorted by box, then by index, shape (n_all,).
        key: (x n_y + y) n_z + z of the box of each, ascending, shape (n_all,).
        shape: boxes along each axis n_x, n_y, n_z.
        side: edges of a box, Angstrom, shape (3,).
    """

    row: Rows
    key: Ints
    shape: Ints
    side: Floats


def sort_into_bins(points: Floats, side: float) -> Bins:
    """Bins of edge `side` (Angstrom); longer along axes that would have more than `MOST_BINS`."""
    low = points.min(axis=0)
    sides = np.maximum(side, np.ptp(points, axis=0) / MOST_BINS)
    index = ((points - low) / sides).astype(np.int64)
    shape = index.max(axis=0) + 1
    key = (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
    row = np.argsort(key, kind="stable")
    return Bins(row.astype(np.uint32), key[row], shape, sides)


def half_list(positions: Floats, n: int, reach: float, cell: Floats) -> tuple[Ints, Rows]:
    """`first` (n + 1,) and `neighbour` (n_half,) of all pairs i < j within `reach` (Angstrom) with i an atom, i < n.

    Pairs are counted before they are written, so that no more memory is used than they need.

    Raises:
        StructureError: more pairs than memory holds.
    """
    bins = sort_into_bins(positions, reach / BINS_PER_REACH * (1 + 1e-6))  # far more than rounding moves a point
    span = np.ceil(reach / bins.side).astype(np.int64)
    points = np.ascontiguousarray(positions[bins.row].T)
    first = np.zeros(n + 1, dtype=np.int64)
    search = (bins.key, bins.row, points, bins.shape, span, reach, first)
    pairs_in_bins(*search, np.empty(0, dtype=np.uint32))
    np.cumsum(first, out=first)
    if first[-1] > MOST_PAIRS:
        raise StructureError(
            f"`cell` and `positions` must leave more room: {first[-1]:.3g} pairs within {reach:g} Angstrom, "
            f"at most {MOST_PAIRS:g}, got {cell.tolist()}"
        )
    neighbour = np.empty(first[-1], dtype=np.uint32)
    pairs_in_bins(*search, neighbour)
    return first, neighbour


@compiled
def images_in_box(
    atoms: Floats, fractions: Floats, lattice: Floats, most: Ints,
    low: Floats, high: Floats, box_low: Floats, box_high: Floats, reach: float, owner: Rows, shifts: Shifts,
) -> int:  # fmt: skip
    """Number of images R_i + S.cell, S > 0, in both boxes; writes as many of them as `owner` holds."""
    count = 0
    widest = box_high - box_low - reach  # an atom shifted further leaves the box
    t = np.empty(3)
    for x in range(most[0] + 1):
        for y in range(-most[1] if x > 0 else 0, most[1] + 1):
            for z in range(-most[2] if x > 0 or y > 0 else 1, most[2] + 1):
                for b in range(3):
                    t[b] = x * lattice[0, b] + y * lattice[1, b] + z * lattice[2, b]
                if abs(t[0]) > widest[0] or abs(t[1]) > widest[1] or abs(t[2]) > widest[2]:
                    continue
                for i in range(len(atoms)):
                    if (
                        low[0] <= fractions[i, 0] + x <= high[0]
                        and low[1] <= fractions[i, 1] + y <= high[1]
                        and low[2] <= fractions[i, 2] + z <= high[2]
                        and box_low[0] <= atoms[i, 0] + t[0] <= box_high[0]
                        and box_low[1] <= atoms[i, 1] + t[1] <= box_high[1]
                        and box_low[2] <= atoms[i, 2] + t[2] <= box_high[2]
                    ):
                        if count < len(owner):
                            owner[count] = i
                            shifts[count, 0], shifts[count, 1], shifts[count, 2] = x, y, z
                        count += 1
                if count > MOST_IMAGES:
                    return count
    return count


@compiled
def pairs_in_bins(
    key: Ints, row: Rows, points: Floats, shape: Ints, span: Ints, reach: float, first: Ints, neighbour: Rows
) -> None:
    """Neighbours j > i of each atom i: their number into first[i + 1], or, where `neighbour` has room, their rows."""
    n, n_all = len(first) - 1, len(key)
    most = (2 * span[0] + 1) * (2 * span[1] + 1)
    starts, ends = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    found = np.empty(0, dtype=np.uint32)
    begin = 0
    while begin < n_all:
        end = begin
        while end < n_all and key[end] == key[begin]:
            end += 1
        if row[begin] < n:  # atoms stand before images in each bin
            columns = columns_around(key[begin], key, shape, span, starts, ends)
            candidates = (ends[:columns] - starts[:columns]).sum()
            if len(found) <= candidates:
                found = np.empty(2 * candidates + 1, dtype=np.uint32)
            for k in range(begin, end):
                i = row[k]
                if i >= n:
                    break
                count = later_rows_within(k, i, row, points, reach, starts[:columns], ends[:columns], found)
                if len(neighbour) > 0:
                    neighbour[first[i] : first[i] + count] = found[:count]
                else:
                    first[i + 1] = count
        begin = end


@compiled
def columns_around(key_i: int, key: Ints, shape: Ints, span: Ints, starts: Ints, ends: Ints) -> int:
    """Ranges of points in the bins up to `span` from bin `key_i`, one for each column along z that is not empty."""
    z = key_i % shape[2]
    y = key_i // shape[2] % shape[1]
    x = key_i // shape[2] // shape[1]
    bottom, top = max(z - span[2], 0), min(z + span[2], shape[2] - 1)
    columns = 0
    for x_near in range(max(x - span[0], 0), min(x + span[0], shape[0] - 1) + 1):
        for y_near in range(max(y - span[1], 0), min(y + span[1], shape[1] - 1) + 1):
            column = (x_near * shape[1] + y_near) * shape[2]
            starts[columns] = np.searchsorted(key, column + bottom)
            ends[columns] = np.searchsorted(key, column + top + 1)
            if ends[columns] > starts[columns]:
                columns += 1
    return columns


@compiled
def later_rows_within(
    k: int, i: int, row: Rows, points: Floats, reach: float, starts: Ints, ends: Ints, found: Rows
) -> int:
    """Rows j > i within `reach` of point k in the given ranges into `found`; returns their number."""
    x, y, z, reach2 = points[0, k], points[1, k], points[2, k], reach * reach
    count = 0
    for c in range(len(starts)):
        for m in range(starts[c], ends[c]):
            dx, dy, dz = points[0, m] - x, points[1, m] - y, points[2, m] - z
            found[count] = row[m]  # written first and kept if it counts: no branch to mispredict
            count += (row[m] > i) & (dx * dx + dy * dy + dz * dz < reach2)
    return count
