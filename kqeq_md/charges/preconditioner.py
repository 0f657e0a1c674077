"""A factorised sparse approximate inverse of J: what makes conjugate gradients short.

For each atom i take the atoms j < i within a radius at their nearest images, and the matrix B of the interaction among
them and i. Row i of the lower triangular factor G is B^-1 e_i / sqrt(e_i.B^-1 e_i), so that G J G^T is close to one;
the preconditioner is M = G^T G. An approximation may be rough where it is quick: instead of kC erf(g r) / r, B has

    B_ij = kC / sqrt(r^2 + pi / (4 g_ij^2)),

which is the same at r = 0 and far away. Atoms at their nearest images are points in open space, where this matrix is
positive definite as well.

References: Kolotilina and Yeremin, SIAM J. Matrix Anal. Appl. 14, 45 (1993), doi:10.1137/0614004; the interaction:
Ohno, Theor. Chim. Acta 2, 219 (1964), doi:10.1007/BF00528281.
"""

from __future__ import annotations

from math import pi

import numpy as np
from numpy.typing import NDArray

from kqeq_md.electrostatics.coulomb import Coulomb
from kqeq_md.electrostatics.gaussians import exponent, self_interaction
from kqeq_md.errors import ChargeError
from kqeq_md.machine.jit import compiled
from kqeq_md.machine.threads import in_parallel, row_blocks, worthwhile
from kqeq_md.neighbours.half_list import Neighbours
from kqeq_md.neighbours.search import Ints, Rows
from kqeq_md.ranks.domain import rows_of
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT

RADIUS = 6.0
"""Angstrom. How far pairs should be known at least."""

ROW = 50.0
"""Atoms in a row of G: with more of them iterations get fewer and each of them dearer."""

BUILD = 40.0
"""Iterations that cost as much as a new preconditioner."""

FLUCTUATION = 0.5
"""Iterations above the first step's that are no sign of age."""


class Preconditioner:
    """The sparse inverse of a trajectory, made anew when its age has cost as many iterations as a new one.

    Args:
        threads: how many work at once.
    """

    def __init__(self, threads: int) -> None:
        self.builds = 0
        self._threads = threads
        self._inverse: SparseInverse | None = None
        self._sorts, self._usual, self._excess = -1, np.inf, 0.0

    def at(self, coulomb: Coulomb, neighbours: Neighbours, follows: bool, halo: Halo = SERIAL) -> SparseInverse:
        """The sparse inverse for the next solution.

        Args:
            coulomb: the operator J.
            neighbours: pairs of the structure, known up to RADIUS or further.
            follows: the structure is the next of its trajectory; else the old inverse is of no use.
            halo: of the ranks that own the other atoms.

        Raises:
            ChargeError: the interaction of an atom and its neighbours is not positive definite.
        """
        before = self._inverse
        if before is None or not follows or self._sorts != neighbours.sorts or self._excess > BUILD:
            self._radius, before = row_radius(neighbours), None
            self._sorts, self._usual, self._excess = neighbours.sorts, np.inf, 0.0
            self.builds += 1
        if before is None or before.number is not neighbours.number:
            width, hardness = (np.asarray(halo.forward(x)) for x in (coulomb.gaussian_width, coulomb.hardness))
            threads = worthwhile(self._threads, len(neighbours.order))
            before = SparseInverse(neighbours, self._radius, width, hardness, threads, before)
        before.halo = halo
        self._inverse = before
        return before

    def judge(self, iterations: int) -> None:
        """Count what the last solution took beyond the usual: the fewest since the inverse was made."""
        self._usual = min(self._usual, iterations)
        self._excess = max(0.0, self._excess + iterations - self._usual - FLUCTUATION)


def row_radius(neighbours: Neighbours) -> float:
    """Distance within which an atom has ROW atoms before it on average, or as far as pairs are known, Angstrom."""
    half = neighbours.halves[0]
    per_atom = max(len(half.neighbour) / max(len(half.first) - 1, 1), 1e-3)
    return min(neighbours.reach * (ROW / per_atom) ** (1.0 / 3.0), neighbours.cutoff)


class SparseInverse:
    """G for one set of positions; it serves as long as atoms have not moved far.

    A rank has the rows of its own atoms; the atoms j of them may be ghosts. What "before" means is the same on all.

    Args:
        neighbours: pairs known up to `radius` at least.
        radius: of the atoms in one row, Angstrom.
        gaussian_width: s_i of atoms and ghosts, Angstrom, shape (n_all,).
        hardness: eta_i of atoms and ghosts, eV/e^2, shape (n_all,).
        threads: how many work at once.
        before: rows of atoms that it has are taken from it, for few atoms come from other ranks at a time. What an
            atom had to do with such as are not known any more is left out: G^T G stays symmetric and positive.

    Attributes:
        number: of atoms and ghosts, as `Neighbours` has it.
        halo: of the ranks that own the ghosts.

    Raises:
        ChargeError: the interaction of an atom and its neighbours is not positive definite.
    """

    halo: Halo = SERIAL
    first: Ints

    def __init__(
        self, neighbours: Neighbours, radius: float, gaussian_width: Floats, hardness: Floats, threads: int,
        before: SparseInverse | None = None,
    ) -> None:  # fmt: skip
        self.number = neighbours.number
        n = len(neighbours.order)
        kept = np.full(n, -1) if before is None else rows_of(self.number[:n], before.number[: len(before.first) - 1])
        self.first, self.column, vectors = lower_triangle(neighbours, radius, kept < 0)
        self.value = np.empty(len(self.column), dtype=np.float32)
        # negative hardness may be made good by the constraint, of which G knows nothing
        diagonal = self_interaction(np.maximum(hardness, 0.0), gaussian_width)
        self._blocks = row_blocks(self.first, threads) or [(0, 0)]
        failed = in_parallel(
            lambda rows: approximate_rows(
                *rows, self.first, self.column, vectors, gaussian_width, diagonal, COULOMB_CONSTANT, self.value
            ),
            self._blocks,
        )
        if max(failed) >= 0:
            raise ChargeError(
                "the interaction of an atom and its neighbours must be positive definite to rounding: `hardness` is "
                "too low for `gaussian_width` as large, and atoms as close"
            )
        if before is not None:
            self._take(before, kept)
            self._blocks = row_blocks(self.first, threads) or [(0, 0)]

    def _take(self, before: SparseInverse, kept: Ints) -> None:
        """Rows kept[i] of `before` for those that are not negative."""
        now = rows_of(before.number, self.number)
        old, new = np.diff(before.first), np.diff(self.first)
        room = np.where(kept < 0, new, np.append(old, 0)[kept]).sum()
        column, value = np.empty(room, dtype=np.uint32), np.empty(room, dtype=np.float32)
        self.first = merge_rows(
            kept, now, before.first, before.column, before.value, self.first, self.column, self.value, column, value
        )
        self.column, self.value = column[: self.first[-1]].copy(), value[: self.first[-1]].copy()

    def apply(self, x: Floats) -> Floats:
        """G^T G x, shape (n,)."""
        everywhere = np.asarray(self.halo.forward(x), dtype=np.float64)
        parts = in_parallel(
            lambda rows: normal_product(*rows, self.first, self.column, self.value, everywhere), self._blocks
        )
        for part in parts[1:]:
            parts[0] += part
        return self.halo.reverse(parts[0])


def lower_triangle(
    neighbours: Neighbours, radius: float, wanted: NDArray[np.bool_]
) -> tuple[Ints, Rows, NDArray[np.float32]]:
    """Where the rows of G start, shape (n + 1,), their columns, each j at its nearest image and i last, and R_j - R_i.

    Args:
        neighbours: pairs known up to `radius` at least.
        radius: Angstrom.
        wanted: rows that are to hold more than their own atom, shape (n,).
    """
    atoms = (neighbours.owner, neighbours.atom, neighbours.number, neighbours.positions, radius, wanted)
    count = np.ones(len(wanted), dtype=np.int64)
    for half in neighbours.halves:
        count_lower(half.first, half.neighbour, *atoms, count)
    room = np.concatenate([[0], np.cumsum(count)])
    # an approximation anyway: single precision has half the memory to read
    column, vectors = np.empty(room[-1], dtype=np.uint32), np.empty((room[-1], 3), dtype=np.float32)
    filled = room[:-1].copy()
    for half in neighbours.halves:
        write_lower(half.first, half.neighbour, *atoms, filled, column, vectors)
    first = nearest_alone(room, filled, len(neighbours.owner), column, vectors)
    return first, column[: first[-1]].copy(), vectors


@compiled
def count_lower(
    first: Ints, neighbour: Rows, owner: Rows, atom: Rows, number: Ints, positions: Floats, radius: float,
    wanted: NDArray[np.bool_], count: Ints,
) -> None:  # fmt: skip
    """Add to `count` the places that each wanted row has if every image within the radius has one."""
    n = len(first) - 1
    for i in range(n):
        for k in range(first[i], first[i + 1]):
            m = neighbour[k]
            j = atom[m]
            if j != i and distance2(positions, i, m) < radius * radius:
                if number[j] < number[i]:
                    count[i] += wanted[i]
                elif owner[m] < n:  # else the row is on the other's rank
                    count[j] += wanted[j]


@compiled
def write_lower(
    first: Ints, neighbour: Rows, owner: Rows, atom: Rows, number: Ints, positions: Floats, radius: float,
    wanted: NDArray[np.bool_], filled: Ints, column: Rows, vectors: NDArray[np.float32],
) -> None:  # fmt: skip
    """Write what `count_lower` has counted from `filled` on: columns j and `vectors` R_j - R_i."""
    n = len(first) - 1
    for i in range(n):
        for k in range(first[i], first[i + 1]):
            m = neighbour[k]
            j = atom[m]
            if j == i or distance2(positions, i, m) >= radius * radius:
                continue
            upper, lower, sign = i, j, 1.0
            if number[j] > number[i]:
                if owner[m] >= n:
                    continue
                upper, lower, sign = j, i, -1.0
            if not wanted[upper]:
                continue
            column[filled[upper]] = lower
            for c in range(3):
                vectors[filled[upper], c] = sign * (positions[m, c] - positions[i, c])
            filled[upper] += 1


@compiled
def nearest_alone(room: Ints, filled: Ints, n_all: int, column: Rows, vectors: NDArray[np.float32]) -> Ints:
    """Keep each j of a row once, at its nearest image, and add i itself; returns where rows start, shape (n + 1,)."""
    n = len(filled)
    start = np.zeros(n + 1, dtype=np.int64)
    place, squared = np.full(n_all, -1, dtype=np.int64), np.empty(n_all)
    last = 0
    for i in range(n):
        begin = last
        for k in range(room[i], filled[i]):
            j = column[k]
            r2 = vectors[k, 0] ** 2 + vectors[k, 1] ** 2 + vectors[k, 2] ** 2
            if place[j] < begin:
                place[j] = last
                last += 1
            elif r2 >= squared[j]:
                continue
            squared[j] = r2
            column[place[j]] = j
            vectors[place[j]] = vectors[k]
        column[last] = i
        vectors[last] = 0.0
        last += 1
        start[i + 1] = last
    return start


@compiled
def distance2(positions: Floats, i: int, m: int) -> float:
    """|R_m - R_i|^2."""
    x, y, z = positions[m, 0] - positions[i, 0], positions[m, 1] - positions[i, 1], positions[m, 2] - positions[i, 2]
    return x * x + y * y + z * z


@compiled
def approximate_rows(
    row: int, end: int, first: Ints, column: Rows, vectors: NDArray[np.float32],
    width: Floats, diagonal: Floats, coulomb_constant: float, value: NDArray[np.float32],
) -> int:  # fmt: skip
    """Rows of G: with B = L L^T, row i is the last column of L^-T. Returns a row whose B has no factor L, or -1."""
    largest = 0
    for i in range(row, end):
        largest = max(largest, first[i + 1] - first[i])
    b, solution = np.empty((largest, largest)), np.empty(largest)
    for i in range(row, end):
        begin, m = first[i], first[i + 1] - first[i]
        for p in range(m):
            atom = column[begin + p]
            for s in range(p):
                r2 = 0.0
                for c in range(3):
                    r2 += (vectors[begin + p, c] - vectors[begin + s, c]) ** 2
                other = column[begin + s]
                g = exponent(width[atom], width[other])
                b[p, s] = coulomb_constant / np.sqrt(r2 + 0.25 * pi / (g * g))
            b[p, p] = diagonal[atom]
        for p in range(m):
            for s in range(p):
                total = b[p, s]
                for t in range(s):
                    total -= b[p, t] * b[s, t]
                b[p, s] = total / b[s, s]
            pivot = b[p, p]
            for t in range(p):
                pivot -= b[p, t] * b[p, t]
            if not pivot > 0.0:
                return i
            b[p, p] = np.sqrt(pivot)
        for p in range(m - 1, -1, -1):
            total = 1.0 if p == m - 1 else 0.0
            for t in range(p + 1, m):
                total -= b[t, p] * solution[t]
            solution[p] = total / b[p, p]
            value[begin + p] = solution[p]
    return -1


@compiled
def merge_rows(
    kept: Ints, now: Ints, first: Ints, column: Rows, value: NDArray[np.float32],
    new_first: Ints, new_column: Rows, new_value: NDArray[np.float32],
    out_column: Rows, out_value: NDArray[np.float32],
) -> Ints:  # fmt: skip
    """Rows kept[i] less columns that are gone (now[...] < 0), or new row i; returns where they start."""
    start = np.zeros(len(kept) + 1, dtype=np.int64)
    last = 0
    for i in range(len(kept)):
        if kept[i] < 0:
            for k in range(new_first[i], new_first[i + 1]):
                out_column[last], out_value[last] = new_column[k], new_value[k]
                last += 1
        else:
            for k in range(first[kept[i]], first[kept[i] + 1]):
                if now[column[k]] >= 0:
                    out_column[last], out_value[last] = now[column[k]], value[k]
                    last += 1
        start[i + 1] = last
    return start


@compiled
def normal_product(row: int, end: int, first: Ints, column: Rows, value: NDArray[np.float32], x: Floats) -> Floats:
    """G^T G x over some rows of G."""
    y = np.zeros(len(x))
    for i in range(row, end):
        total = 0.0
        for k in range(np.uint64(first[i]), np.uint64(first[i + 1])):
            total += value[k] * x[column[k]]
        for k in range(np.uint64(first[i]), np.uint64(first[i + 1])):
            y[column[k]] += value[k] * total
    return y
