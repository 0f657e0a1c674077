"""Pairs of the atoms of one rank, with ghosts in the place of images (`neighbours` for one process)."""

from __future__ import annotations

import numpy as np

from kqeq_md.errors import KqeqError
from kqeq_md.machine.jit import compiled
from kqeq_md.neighbours.half_list import HalfList, Pairs, directed, lattice_of, stretch
from kqeq_md.neighbours.search import Ints, Rows, half_list
from kqeq_md.ranks.domain import Domain
from kqeq_md.structure import Floats, Structure

SKIN = 1.0
"""Angstrom. The engine gives new ghosts from time to time, and then the list is made anew anyway."""


class GhostList:
    """Half lists of a rank: pairs of owned atoms, and pairs of an owned atom and a ghost; see `Neighbours`.

    Rows are those of the engine. The list is kept while owned atoms and ghosts are the same and none has moved too far,
    by the rule of `neighbours`.
    """

    order: Ints
    positions: Floats
    owner: Rows
    atom: Rows
    number: Ints
    _lattice: Floats
    _built: Floats

    def __init__(self) -> None:
        self.builds = self.sorts = 0
        self.cutoff = self.reach = 0.0
        self.order = np.empty(0, dtype=np.int64)
        self.positions = self._built = np.empty((0, 3))
        self.halves: tuple[HalfList, ...] = ()

    def update(self, structure: Structure, domain: Domain, cutoff: float) -> None:
        """Make the list good for all pairs below `cutoff` (Angstrom).

        Raises:
            KqeqError: ghosts do not reach so far.
        """
        if cutoff > domain.reach * (1.0 + 1e-9):
            raise KqeqError(f"`reach` of the ghosts must be at least {cutoff:.4g} Angstrom, got {domain.reach:.4g}")
        self.positions = np.concatenate([structure.positions, domain.ghosts])
        lattice = lattice_of(structure)
        if domain.renewed:
            self.number = domain.ids
            self.atom = first_rows(domain.ids)
        if domain.renewed or not self._serves(lattice, cutoff):
            self._build(len(structure), lattice, cutoff)
        self.cutoff = cutoff

    def pairs(self, domain: Domain, cutoff: float, threads: int = 1) -> Pairs:
        """As `NeighbourList.pairs`; neighbours are rows of owned atoms and ghosts, and errors name ids."""
        return directed(self, cutoff, domain.ids, threads)

    def _serves(self, lattice: Floats, cutoff: float) -> bool:
        if len(self._built) != len(self.positions):
            return False
        moved = farthest_two(self.positions, self._built, np.linalg.solve(self._lattice, lattice))
        return bool(stretch(self._lattice, lattice) * self.reach - moved >= cutoff)

    def _build(self, n: int, lattice: Floats, cutoff: float) -> None:
        self.reach = cutoff + SKIN
        self.order, self.owner = np.arange(n), np.arange(len(self.positions), dtype=np.uint32)
        first, neighbour = np.zeros(n + 1, dtype=np.int64), np.empty(0, dtype=np.uint32)
        if n > 0:
            first, neighbour = half_list(self.positions, n, self.reach, lattice)
        self.halves = halves_of(first, neighbour)
        self._lattice, self._built = lattice, self.positions
        self.builds += 1


@compiled
def farthest_two(now: Floats, before: Floats, deform: Floats) -> float:
    """Sum of the two largest |R_i(now) - R_i(before) D|, Angstrom."""
    largest = second = 0.0
    for i in range(len(now)):
        u2 = 0.0
        for a in range(3):
            u = now[i, a]
            for b in range(3):
                u -= before[i, b] * deform[b, a]
            u2 += u * u
        if u2 > largest:
            largest, second = u2, largest
        elif u2 > second:
            second = u2
    return np.sqrt(largest) + np.sqrt(second)


def first_rows(ids: Ints) -> Rows:
    """The first row with the id of each row, shape of `ids`."""
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    return first[which].astype(np.uint32)


def halves_of(first: Ints, neighbour: Rows) -> tuple[HalfList, HalfList]:
    """Pairs of atoms, and pairs of an atom and a ghost, which stand on the ghost's rank as well."""
    n = len(first) - 1
    own = neighbour < n
    before = np.concatenate([[0], np.cumsum(own)])[first]
    return HalfList(before, neighbour[own]), HalfList(first - before, neighbour[~own], share=0.5)
