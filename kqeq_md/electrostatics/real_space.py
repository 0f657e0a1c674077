"""The short-ranged part of the Ewald sum over a half list of pairs.

    (A q)_i = sum_j f_ij q_j,   E = 1/2 q.A q,   field_i = -sum_j q_j f'(r_ij) (R_i - R_j) / r_ij

Each pair stands once in the list and serves both of its atoms. An atom may meet its own image; such a pair gives the
atom both of its images, +S and -S. Indices in the kernels are unsigned, so that the compiler needs not look for
negative ones; a pair is written before it is known to count, and kept if it does: no branch to mispredict.
"""

from __future__ import annotations

import numpy as np

from kqeq_md.electrostatics.pair_table import PairTable, tabulated
from kqeq_md.machine.jit import compiled
from kqeq_md.machine.threads import in_parallel, row_blocks
from kqeq_md.neighbours.half_list import HalfList, Neighbours
from kqeq_md.neighbours.search import Ints, Rows
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.structure import Floats


class RealSpace:
    """The sparse matrix A of one set of positions; its memory is used again for the next one.

    Pairs of an atom with a ghost stand on both of their ranks, each of which takes what is its own atom's, and half of
    the strain.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def set(
        self, neighbours: Neighbours, species_all: Ints, table: PairTable, threads: int, halo: Halo = SERIAL
    ) -> None:
        """Evaluate the pairs of `neighbours`; `species_all` are element indices of its atoms and ghosts."""
        self._halo, halves = halo, neighbours.halves
        while len(self._parts) < len(halves):
            self._parts.append(_Part())
        for part, half in zip(self._parts, halves, strict=True):
            part.set(neighbours, half, species_all.astype(np.uint32), table, threads)

    def apply(self, charges: Floats) -> Floats:
        """A q, eV/e, shape (n,)."""
        everywhere = np.asarray(self._halo.forward(charges), dtype=np.float64)
        return _total([part.apply(everywhere) for part in self._parts])[: len(charges)]

    def field(self, charges: Floats) -> tuple[Floats, Floats]:
        """Field at the atoms, V/Angstrom, shape (n, 3), and this rank's part of dE/d(strain), eV, shape (3, 3)."""
        everywhere = np.asarray(self._halo.forward(charges), dtype=np.float64)
        fields, strains = zip(*(part.field(everywhere) for part in self._parts), strict=True)
        return _total(list(fields))[: len(charges)], sum(strains)


class _Part:
    """The values of one half list.

    Only pairs within the cutoff are kept, as column and value (12 bytes each); distances are computed again where
    forces are wanted.
    """

    def __init__(self) -> None:
        self._column: Rows = np.empty(0, dtype=np.uint32)
        self._value: Floats = np.empty(0)

    def set(self, atoms: Neighbours, half: HalfList, species_all: Rows, table: PairTable, threads: int) -> None:
        self._atoms, self._half, self._species, self._table = atoms, half, species_all, table
        n, n_pairs = len(half.first) - 1, len(half.neighbour)
        if len(self._value) < n_pairs:
            self._column = np.empty(int(1.05 * n_pairs), dtype=np.uint32)
            self._value = np.empty(len(self._column))
        self._start, self._stop = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
        self._blocks = row_blocks(half.first, threads) or [(0, 0)]
        in_parallel(
            lambda rows: pair_values(
                *rows, half.first, half.neighbour, atoms.owner, atoms.positions, species_all,
                table.values, table.spacing, table.cutoff, self._start, self._stop, self._column, self._value,
            ),
            self._blocks,
        )  # fmt: skip

    def apply(self, charges: Floats) -> Floats:
        """A q of these pairs at all that have charges, shape (n_all,)."""
        parts = in_parallel(
            lambda rows: symmetric_product(*rows, self._start, self._stop, self._column, self._value, charges),
            self._blocks,
        )
        return _total(parts)

    def field(self, charges: Floats) -> tuple[Floats, Floats]:
        """Field at all that have charges, V/Angstrom, shape (n_all, 3), and dE/d(strain), eV, shape (3, 3).

        Each image is strained at its own place: dE/d(strain) = -sum over atoms and images of R (x) q field.
        """
        atoms, half, table = self._atoms, self._half, self._table
        parts = in_parallel(
            lambda rows: pair_field(
                *rows, half.first, half.neighbour, atoms.owner, atoms.positions, self._species,
                table.values, table.spacing, table.cutoff, charges,
            ),
            self._blocks,
        )  # fmt: skip
        everywhere = _total(parts)
        strain = -half.share * atoms.positions.T @ (charges[atoms.owner, None] * everywhere)
        if len(charges) == len(everywhere):  # no images: each row has a charge of its own
            return everywhere, strain
        field = np.empty((len(charges), 3))
        for c in range(3):
            field[:, c] = np.bincount(atoms.owner, everywhere[:, c], minlength=len(charges))
        return field, strain


def _total(parts: list[Floats]) -> Floats:
    """The sum of the blocks' results, in place in the first one."""
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


@compiled
def pair_values(
    row: int, end: int, first: Ints, neighbour: Rows, owner: Rows, positions: Floats, species: Rows,
    table: Floats, spacing: float, cutoff: float, start: Ints, stop: Ints, column: Rows, value: Floats,
) -> None:  # fmt: skip
    """f_ij of the pairs within the cutoff, packed row by row into column and value."""
    per_spacing, cutoff2 = 1.0 / spacing, cutoff * cutoff
    last = np.uint64(first[row])
    for i in range(row, end):
        start[i] = last
        x_i, y_i, z_i = positions[i, 0], positions[i, 1], positions[i, 2]
        for k in range(np.uint64(first[i]), np.uint64(first[i + 1])):
            m = neighbour[k]
            x, y, z = positions[m, 0] - x_i, positions[m, 1] - y_i, positions[m, 2] - z_i
            r2 = x * x + y * y + z * z
            column[last], value[last] = owner[m], r2
            last += np.uint64(r2 < cutoff2)
        stop[i] = last
        rows = table[species[i]]
        for k in range(np.uint64(start[i]), last):
            value[k] = tabulated(rows[species[column[k]]], np.sqrt(value[k]) * per_spacing)[0]


@compiled
def symmetric_product(row: int, end: int, start: Ints, stop: Ints, column: Rows, value: Floats, x: Floats) -> Floats:
    """y_i += f_ij x_j and y_j += f_ij x_i over the pairs of some rows."""
    y = np.zeros(len(x))
    for i in range(row, end):
        x_i, y_i = x[i], 0.0
        for k in range(np.uint64(start[i]), np.uint64(stop[i])):
            j = column[k]
            y_i += value[k] * x[j]
            y[j] += value[k] * x_i
        y[i] += y_i
    return y


@compiled
def pair_field(
    row: int, end: int, first: Ints, neighbour: Rows, owner: Rows, positions: Floats, species: Rows,
    table: Floats, spacing: float, cutoff: float, charges: Floats,
) -> Floats:  # fmt: skip
    """Field at both points of each pair of some rows: an atom and, where it stands, an atom or an image."""
    field = np.zeros((len(positions), 3))
    longest = 0
    for i in range(row, end):
        longest = max(longest, first[i + 1] - first[i])
    within, d, slope = np.empty(longest + 1, dtype=np.uint32), np.empty((longest + 1, 3)), np.empty(longest + 1)
    per_spacing, cutoff2 = 1.0 / spacing, cutoff * cutoff
    for i in range(row, end):
        count = np.uint64(0)
        x_i, y_i, z_i = positions[i, 0], positions[i, 1], positions[i, 2]
        for k in range(np.uint64(first[i]), np.uint64(first[i + 1])):
            m = neighbour[k]
            x, y, z = positions[m, 0] - x_i, positions[m, 1] - y_i, positions[m, 2] - z_i
            r2 = x * x + y * y + z * z
            within[count], slope[count] = m, r2
            d[count, 0], d[count, 1], d[count, 2] = x, y, z
            count += np.uint64(r2 < cutoff2)
        rows = table[species[i]]
        for k in range(count):
            r = np.sqrt(slope[k])
            slope[k] = tabulated(rows[species[owner[within[k]]]], r * per_spacing)[1] * per_spacing / r
        x_i, y_i, z_i = 0.0, 0.0, 0.0
        for k in range(count):
            m = within[k]
            on_i, on_m = slope[k] * charges[owner[m]], slope[k] * charges[i]
            x_i, y_i, z_i = x_i + on_i * d[k, 0], y_i + on_i * d[k, 1], z_i + on_i * d[k, 2]
            field[m, 0] -= on_m * d[k, 0]
            field[m, 1] -= on_m * d[k, 1]
            field[m, 2] -= on_m * d[k, 2]
        field[i, 0] += x_i
        field[i, 1] += y_i
        field[i, 2] += z_i
    return field
