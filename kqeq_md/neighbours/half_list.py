"""Pairs of atoms within a cutoff: a half list with a skin, kept from step to step.

Periodic images are points of their own, written beside the atoms (`pair_search`), so that whoever walks the list needs
no lattice vectors.

The list holds all pairs below r_list when it is built. Let D = cell(build)^-1 cell(now), s its smallest singular
value and u_i = |R_i(now) - R_i(build) D|. A pair that is now at r was then at most at (r + u_i + u_j) / s, so that all
pairs below the cutoff are still there while

    s r_list - (the two largest u) >= cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kqeq_md.errors import KqeqError, StructureError
from kqeq_md.machine.jit import compiled
from kqeq_md.machine.threads import in_parallel, row_blocks
from kqeq_md.neighbours.search import Ints, Rows, Shifts, half_list, images_within, sort_into_bins
from kqeq_md.structure import FARTHEST, Floats, Structure

SHORTEST_DISTANCE = 0.2
"""Angstrom. Closer atoms are a mistake in the input (two atoms on one site), not physics."""

FEWEST_SORTED = 500
"""Atoms. Below it everything fits into the fastest cache and the order does not matter."""

SORT_DISTANCE = 4.0
"""Angstrom. Edge of the cells by which atoms are sorted, and the displacement that makes a new order worthwhile."""


@dataclass(frozen=True)
class Pairs:
    """Directed pairs (centre, neighbour), sorted by centre; each image of a neighbour is a pair of its own.

    Attributes:
        first: the pairs of centre i are first[i]:first[i + 1], shape (n_local + 1,).
        neighbour: index of the neighbour among owned atoms and ghosts, shape (n_pairs,).
        vectors: R_neighbour - R_centre, Angstrom, shape (n_pairs, 3).
    """

    first: Ints
    neighbour: Ints
    vectors: Floats

    @property
    def centre(self) -> Ints:
        """Index of the centre of each pair, shape (n_pairs,)."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def scatter(self, gradient_pc: Floats, n_all: int) -> Floats:
        """dE/dR from dE/d(pair vectors): minus on the centre, plus on the neighbour; shape (n_all, 3)."""
        return scatter_gradient(self.first, self.neighbour, gradient_pc, n_all)


@dataclass(frozen=True)
class HalfList:
    """Pairs of an atom with a later row of the positions, sorted by the atom.

    Attributes:
        first: the pairs of atom i are first[i]:first[i + 1], shape (n + 1,).
        neighbour: row of the other one, shape (n_half,).
        share: of a pair's energy that belongs to this rank: 1/2 of pairs that stand on the other's rank too.
    """

    first: Ints
    neighbour: Rows
    share: float = 1.0


class Neighbours(Protocol):
    """Half lists of the atoms of one process, kept from step to step.

    Attributes:
        order: row k of everything below is atom order[k] of the structure, shape (n,).
        positions: the n atoms, then images or ghosts, Angstrom, shape (n_all, 3).
        owner: the row whose charge each row has, shape (n_all,): that of its atom for an image, its own for a ghost.
        atom: the first row of the same atom, shape (n_all,).
        number: what tells atoms apart and puts them in an order that all ranks share, shape (n_all,) or (n,).
        halves: one list of all pairs, or one of pairs of atoms and one of pairs of an atom and a ghost.
        builds: how often the list was built.
        sorts: how often rows were made or given to other atoms.
    """

    order: Ints
    positions: Floats
    owner: Rows
    number: Ints
    builds: int
    sorts: int

    @property
    def atom(self) -> Rows: ...

    @property
    def halves(self) -> tuple[HalfList, ...]: ...

    @property
    def cutoff(self) -> float: ...

    @property
    def reach(self) -> float: ...


def find_pairs(structure: Structure, cutoff: float) -> Pairs:
    """All directed pairs with a distance below `cutoff` (Angstrom), images of small cells included.

    Raises:
        StructureError: two atoms closer than 0.2 Angstrom; a cell far too small for the cutoff.
    """
    once = NeighbourList(skin=0.0)
    once.order = np.arange(len(structure.positions))
    once._build(structure, lattice_of(structure), cutoff)
    return once.pairs(cutoff)


class NeighbourList:
    """Half list of pairs within cutoff + skin, kept from step to step; rebuilt when atoms moved or the cell changed.

    A pair of two atoms stands with the smaller row, a pair of an atom and an image with the atom.

    Args:
        skin: how far beyond the cutoff pairs are listed, Angstrom.

    Attributes:
        order: spatial order, row k of everything below is atom order[k] of the structure, shape (n,).
        positions: the n atoms, continuous since the list was built, then images, Angstrom, shape (n_all, 3).
        owner: the row of which each row is an image; owner[:n] = arange(n), shape (n_all,).
        first: the neighbours of row i are neighbour[first[i]:first[i + 1]], shape (n + 1,).
        neighbour: rows of `positions`, images included, shape (n_half,).
        number: 0, 1, ... for the n atoms; another array whenever `order` is made.
        builds: how often the list was built.
        sorts: how often `order` was made.

    Raises:
        KqeqError: a skin that is negative or not finite.
    """

    order: Ints
    number: Ints
    positions: Floats
    owner: Rows
    first: Ints
    neighbour: Rows
    _numbers: Ints
    _pbc: tuple[bool, ...]
    _shifts: Shifts
    _lattice: Floats
    _fractions: Floats
    _sorted_fractions: Floats

    def __init__(self, skin: float = 1.0) -> None:
        if not 0.0 <= skin < np.inf:
            raise KqeqError(f"`skin` must be at least 0 Angstrom, got {skin!r}")
        self.skin = skin
        self.builds = 0
        self.sorts = 0
        self.order = self.number = np.empty(0, dtype=np.int64)
        self._forget()

    def update(self, structure: Structure, cutoff: float) -> None:
        """Make the list good for all pairs below `cutoff` (Angstrom) at the positions of `structure`.

        Raises:
            KqeqError: a cutoff that is not positive.
            StructureError: coordinates beyond 1e9 Angstrom; a cell far too small for the cutoff.
        """
        if not 0.0 < cutoff < np.inf:
            raise KqeqError(f"`cutoff` must be positive, got {cutoff!r}")
        lattice = lattice_of(structure)
        same = self._pbc == structure.pbc and np.array_equal(self._numbers, structure.numbers)
        largest, second = self._follow(structure, lattice) if same else (np.inf, np.inf)
        if same and stretch(self._lattice, lattice) * self._reach - (largest + second) >= cutoff:
            self._cutoff = cutoff
            place_images(self.positions, self.owner, self._shifts, lattice)
            return
        if largest > SORT_DISTANCE or self._unsorted(structure, lattice):
            self._sort(structure, lattice)
        self._build(structure, lattice, cutoff)

    def pairs(self, cutoff: float, threads: int = 1) -> Pairs:
        """All directed pairs of atoms below `cutoff` (Angstrom) in the sorted order; neighbours are the owners' rows.

        Each thread takes some rows of the half list. It counts first, so that it knows where its pairs go; their order
        within a centre depends on the number of threads.

        Raises:
            KqeqError: a cutoff beyond the one that the list was made good for.
            StructureError: two atoms closer than 0.2 Angstrom, by their indices in the structure.
        """
        if not 0.0 < cutoff <= self._cutoff:
            raise KqeqError(f"`cutoff` must be positive and at most {self._cutoff:g}, as in `update`, got {cutoff!r}")
        return directed(self, cutoff, self.order, threads)

    @property
    def atom(self) -> Rows:
        """As `owner`: each row's charge is that of its atom."""
        return self.owner

    @property
    def halves(self) -> tuple[HalfList, ...]:
        """One list of all pairs."""
        return (HalfList(self.first, self.neighbour),)

    @property
    def cutoff(self) -> float:
        """All pairs below it are in the list at the positions of the last `update`, Angstrom."""
        return self._cutoff

    @property
    def reach(self) -> float:
        """All pairs below it were listed when the list was built, Angstrom."""
        return self._reach

    def _forget(self) -> None:
        """Hold no list: before the first, and while one is built, so that two are never in memory."""
        self._cutoff = self._reach = 0.0
        self._pbc = ()
        self._numbers = np.empty(0, dtype=np.int64)
        self._lattice = np.eye(3)
        self._fractions = self.positions = np.empty((0, 3))
        self._shifts = np.empty((0, 3), dtype=np.int32)
        self.owner = self.neighbour = np.empty(0, dtype=np.uint32)
        self.first = np.zeros(1, dtype=np.int64)

    def _follow(self, structure: Structure, lattice: Floats) -> tuple[float, float]:
        """Take the positions of `structure`, continuous since the build; returns the two largest u, Angstrom."""
        now = structure.positions[self.order]
        inverse, periodic = np.linalg.inv(lattice), np.array(structure.pbc)
        largest, second = follow(now, lattice, inverse, periodic, self._fractions, self.positions)
        return largest, second

    def _unsorted(self, structure: Structure, lattice: Floats) -> bool:
        """True if the rms displacement since the sort exceeds `SORT_DISTANCE`."""
        if len(self.order) < FEWEST_SORTED:
            return False
        moved = structure.positions @ np.linalg.inv(lattice) - self._sorted_fractions
        moved -= np.round(moved) * structure.pbc
        return bool(np.mean(((moved @ lattice) ** 2).sum(axis=1)) > SORT_DISTANCE**2)

    def _sort(self, structure: Structure, lattice: Floats) -> None:
        """Make `order` by cells of `SORT_DISTANCE`, numbered along the last axis first; few atoms keep their order."""
        points, self._sorted_fractions = wrap(structure.positions, lattice, structure.pbc)
        few = len(points) < FEWEST_SORTED
        self.order = np.arange(len(points)) if few else sort_into_bins(points, SORT_DISTANCE).row.astype(np.int64)
        self.number = np.arange(len(points))
        self.sorts += 1

    def _build(self, structure: Structure, lattice: Floats, cutoff: float) -> None:
        """Wrap the atoms into the cell, write their images and find all pairs within cutoff + skin."""
        self._forget()
        reach = cutoff + self.skin
        if np.abs(structure.positions).max() > FARTHEST:
            raise StructureError(
                f"`positions` must lie within {FARTHEST:g} Angstrom, got {np.abs(structure.positions).max():.3g}"
            )
        atoms, fractions = wrap(structure.positions[self.order], lattice, structure.pbc)
        owner, shifts = images_within(atoms, fractions, lattice, structure.pbc, reach)
        positions = np.concatenate([atoms, np.empty((len(owner) - len(atoms), 3))])
        place_images(positions, owner, shifts, lattice)
        self.first, self.neighbour = half_list(positions, len(atoms), reach, structure.cell)
        self.positions, self.owner = positions, owner
        self._shifts, self._fractions, self._lattice = shifts, fractions, lattice
        self._pbc, self._numbers = structure.pbc, structure.numbers.copy()
        self._reach, self._cutoff = reach, cutoff
        self.builds += 1


def lattice_of(structure: Structure) -> Floats:
    """Periodic lattice vectors as rows; unit vectors perpendicular to all of them along open axes; shape (3, 3)."""
    if not any(structure.pbc):
        return np.eye(3)
    lattice = np.array(structure.cell)
    unit = np.linalg.inv(lattice).T
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    is_open = ~np.array(structure.pbc)
    lattice[is_open] = unit[is_open]
    return lattice


def stretch(before: Floats, now: Floats) -> float:
    """The smallest singular value s of D = before^-1 now: how much of a distance is at least left."""
    return float(np.linalg.svd(np.linalg.solve(before, now), compute_uv=False)[-1])


def wrap(positions: Floats, lattice: Floats, pbc: tuple[bool, ...]) -> tuple[Floats, Floats]:
    """Positions inside the cell along periodic axes, Angstrom, and their fractional coordinates, each shape (n, 3)."""
    fractions = positions @ np.linalg.inv(lattice)
    cells = np.floor(fractions) * pbc
    return positions - cells @ lattice, fractions - cells


@compiled
def follow(
    now: Floats, lattice: Floats, inverse: Floats, periodic: NDArray[np.bool_], fractions: Floats, positions: Floats
) -> tuple[float, float]:
    """R_i - w_i.cell into positions[:n], w_i = round(f_i - f_i(build)); the two largest u.

    u_i = |(f_i - f_i(build) - w_i).cell|: an atom that is written in another cell has not moved.
    """
    largest = second = 0.0
    moved = np.empty(3)
    for i in range(len(now)):
        for a in range(3):
            positions[i, a] = now[i, a]
        for a in range(3):
            moved[a] = -fractions[i, a]
            for b in range(3):
                moved[a] += now[i, b] * inverse[b, a]
            cells = np.round(moved[a]) if periodic[a] else 0.0
            moved[a] -= cells
            if cells != 0.0:
                for b in range(3):
                    positions[i, b] -= cells * lattice[a, b]
        u2 = 0.0
        for b in range(3):
            u2 += (moved[0] * lattice[0, b] + moved[1] * lattice[1, b] + moved[2] * lattice[2, b]) ** 2
        if u2 > largest:
            largest, second = u2, largest
        elif u2 > second:
            second = u2
    return np.sqrt(largest), np.sqrt(second)


@compiled
def place_images(positions: Floats, owner: Rows, shifts: Shifts, lattice: Floats) -> None:
    """R_owner + S.cell into the rows of the images."""
    n = len(owner) - len(shifts)
    for k in range(len(shifts)):
        for b in range(3):
            positions[n + k, b] = positions[owner[n + k], b] + (
                shifts[k, 0] * lattice[0, b] + shifts[k, 1] * lattice[1, b] + shifts[k, 2] * lattice[2, b]
            )


def directed(neighbours: Neighbours, cutoff: float, names: Ints, threads: int) -> Pairs:
    """All directed pairs of the atoms of half lists below `cutoff` (Angstrom); arguments as for `NeighbourList.pairs`.

    Args:
        names: what the user calls the rows of `positions` that own the others.

    Raises:
        StructureError: two atoms closer than 0.2 Angstrom.
    """
    n = len(neighbours.halves[0].first) - 1
    blocks = [(half, rows) for half in neighbours.halves for rows in row_blocks(half.first, threads) or [(0, n)]]
    counts = [np.zeros(n, dtype=np.int64) for _ in blocks]
    no_pairs, no_vectors = np.empty(0, dtype=np.int64), np.empty((0, 3))

    def walk(block: int, free: Ints, out: Ints, vectors: Floats) -> tuple[float, int, int]:
        half, rows = blocks[block]
        atoms = (neighbours.owner, neighbours.positions)
        return directed_pairs(*rows, half.first, half.neighbour, *atoms, cutoff, free, out, vectors)

    def count(block: int) -> tuple[float, int, int]:
        return walk(block, counts[block], no_pairs, no_vectors)

    shortest, i, j = min(in_parallel(count, range(len(blocks)), threads))
    if shortest < SHORTEST_DISTANCE:
        raise StructureError(
            f"`positions`: atoms {names[i]} and {names[j]} overlap, {shortest:.3g} Angstrom apart "
            f"(at least {SHORTEST_DISTANCE} needed)"
        )
    first: Ints = np.concatenate([[0], np.cumsum(sum(counts))])
    neighbour, vectors = np.empty(first[-1], dtype=np.int64), np.empty((first[-1], 3))
    free = [np.asarray(first[:-1] + sum(counts[:block]), dtype=np.int64) for block in range(len(blocks))]
    in_parallel(lambda block: walk(block, free[block], neighbour, vectors), range(len(blocks)), threads)
    return Pairs(first, neighbour, vectors)


@compiled
def directed_pairs(
    begin: int, end: int, first: Ints, neighbour: Rows, owner: Rows, positions: Floats, cutoff: float,
    free: Ints, directed: Ints, vectors: Floats,
) -> tuple[float, int, int]:  # fmt: skip
    """Both directions of each pair below the cutoff in some rows, written where free[centre] says, which moves on.

    A ghost, which owns its own row, is no centre. Without room in `directed` pairs are only counted. Returns the
    shortest distance and the two atoms' rows.
    """
    shortest, i_shortest, j_shortest = np.inf, 0, 0
    d = np.empty(3)
    for i in range(begin, end):
        for k in range(first[i], first[i + 1]):
            for a in range(3):
                d[a] = positions[neighbour[k], a] - positions[i, a]
            r2 = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
            if r2 >= cutoff * cutoff:
                continue
            j = owner[neighbour[k]]
            if r2 < shortest:
                shortest, i_shortest, j_shortest = r2, i, j
            if len(directed) > 0:
                directed[free[i]] = j
                for a in range(3):
                    vectors[free[i], a] = d[a]
            free[i] += 1
            if j >= len(free):
                continue
            if len(directed) > 0:
                directed[free[j]] = i
                for a in range(3):
                    vectors[free[j], a] = -d[a]
            free[j] += 1
    return np.sqrt(shortest), i_shortest, j_shortest


@compiled
def scatter_gradient(first: Ints, neighbour: Ints, gradient: Floats, n_all: int) -> Floats:
    """dE/dR, shape (n_all, 3), from dE/d(R_neighbour - R_centre), shape (n_pairs, 3)."""
    out = np.zeros((n_all, 3))
    for i in range(len(first) - 1):
        for pair in range(first[i], first[i + 1]):
            for a in range(3):
                out[i, a] -= gradient[pair, a]
                out[neighbour[pair], a] += gradient[pair, a]
    return out
