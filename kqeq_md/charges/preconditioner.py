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
from kqeq_md.jit import compiled
from kqeq_md.neighbours import NeighbourList
from kqeq_md.pair_search import Ints, Rows
from kqeq_md.structure import Floats
from kqeq_md.threads import in_parallel, row_blocks, worthwhile
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

    def at(self, coulomb: Coulomb, neighbours: NeighbourList, follows: bool) -> SparseInverse:
        """The sparse inverse for the next solution.

        Args:
            coulomb: the operator J.
            neighbours: pairs of the structure, known up to RADIUS or further.
            follows: the structure is the next of its trajectory; else the old inverse is of no use.

        Raises:
            ChargeError: the interaction of an atom and its neighbours is not positive definite.
        """
        if self._inverse is None or not follows or self._sorts != neighbours.sorts or self._excess > BUILD:
            threads = worthwhile(self._threads, len(neighbours.order))
            self._inverse = SparseInverse(
                neighbours, row_radius(neighbours), coulomb.gaussian_width, coulomb.hardness, threads
            )
            self._sorts, self._usual, self._excess = neighbours.sorts, np.inf, 0.0
            self.builds += 1
        return self._inverse

    def judge(self, iterations: int) -> None:
        """Count what the last solution took beyond the usual: the fewest since the inverse was made."""
        self._usual = min(self._usual, iterations)
        self._excess = max(0.0, self._excess + iterations - self._usual - FLUCTUATION)


def row_radius(neighbours: NeighbourList) -> float:
    """Distance within which an atom has ROW atoms before it on average, or as far as pairs are known, Angstrom."""
    per_atom = max(len(neighbours.neighbour) / (len(neighbours.first) - 1), 1e-3)
    return min(neighbours.reach * (ROW / per_atom) ** (1.0 / 3.0), neighbours.cutoff)


class SparseInverse:
    """G for one set of positions; it serves as long as atoms have not moved far.

    Args:
        neighbours: pairs known up to `radius` at least.
        radius: of the atoms in one row, Angstrom.
        gaussian_width: s_i, Angstrom, shape (n,).
        hardness: eta_i, eV/e^2, shape (n,).
        threads: how many work at once.

    Raises:
        ChargeError: the interaction of an atom and its neighbours is not positive definite.
    """

    def __init__(
        self, neighbours: NeighbourList, radius: float, gaussian_width: Floats, hardness: Floats, threads: int
    ) -> None:
        half = (neighbours.first, neighbours.neighbour, neighbours.owner, neighbours.positions)
        room = count_lower(*half, radius)
        # an approximation anyway: single precision has half the memory to read
        column, vectors = np.empty(room[-1], dtype=np.uint32), np.empty((room[-1], 3), dtype=np.float32)
        self.first = lower_rows(*half, radius, room, column, vectors)
        self.column = column[: self.first[-1]].copy()
        self.value = np.empty(len(self.column), dtype=np.float32)
        # negative hardness may be made good by the constraint, of which G knows nothing
        diagonal = self_interaction(np.maximum(hardness, 0.0), gaussian_width)
        self._blocks = row_blocks(self.first, threads)
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

    def apply(self, x: Floats) -> Floats:
        """G^T G x, shape (n,)."""
        parts = in_parallel(lambda rows: normal_product(*rows, self.first, self.column, self.value, x), self._blocks)
        for part in parts[1:]:
            parts[0] += part
        return parts[0]


@compiled
def count_lower(first: Ints, neighbour: Rows, owner: Rows, positions: Floats, radius: float) -> Ints:
    """Where each row of the lower triangle starts if every image within the radius has a place, and the total."""
    n = len(first) - 1
    room = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        room[i + 1] += 1
        for k in range(first[i], first[i + 1]):
            m = neighbour[k]
            if owner[m] != i and distance2(positions, i, m) < radius * radius:
                room[max(i, owner[m]) + 1] += 1
    return np.cumsum(room)


@compiled
def lower_rows(
    first: Ints, neighbour: Rows, owner: Rows, positions: Floats, radius: float, room: Ints,
    column: Rows, vectors: NDArray[np.float32],
) -> Ints:  # fmt: skip
    """Rows of the lower triangle: each j < i once, at its nearest image, then i itself; `vectors` are R_j - R_i.

    Returns where the rows start, shape (n + 1,).
    """
    n = len(first) - 1
    filled = room[:-1].copy()
    for i in range(n):
        for k in range(first[i], first[i + 1]):
            m = neighbour[k]
            if owner[m] != i and distance2(positions, i, m) < radius * radius:
                upper, lower, sign = (i, owner[m], 1.0) if owner[m] < i else (owner[m], i, -1.0)
                column[filled[upper]] = lower
                for c in range(3):
                    vectors[filled[upper], c] = sign * (positions[m, c] - positions[i, c])
                filled[upper] += 1
    start = np.zeros(n + 1, dtype=np.int64)
    place, squared = np.full(n, -1, dtype=np.int64), np.empty(n)
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
