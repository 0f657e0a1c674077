"""Pairs of atoms within a cutoff."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from vesin import NeighborList

from kqeq_md.errors import StructureError
from kqeq_md.structure import Floats, Structure

SHORTEST_DISTANCE = 0.2
"""Angstrom. Closer atoms are a mistake in the input (two atoms on one site), not physics."""


@dataclass(frozen=True)
class Pairs:
    """Directed pairs (centre, neighbour), sorted by centre; each image of a neighbour is a pair of its own.

    Attributes:
        first: the pairs of centre i are first[i]:first[i + 1], shape (n_local + 1,).
        neighbour: index of the neighbour among owned atoms and ghosts, shape (n_pairs,).
        vectors: R_neighbour - R_centre, Angstrom, shape (n_pairs, 3).
    """

    first: NDArray[np.int64]
    neighbour: NDArray[np.int64]
    vectors: Floats

    @property
    def centre(self) -> NDArray[np.int64]:
        """Index of the centre of each pair, shape (n_pairs,)."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def scatter(self, gradient_pc: Floats, n_all: int) -> Floats:
        """dE/dR from dE/d(pair vectors): minus on the centre, plus on the neighbour; shape (n_all, 3)."""
        out = np.empty((n_all, 3))
        for c in range(3):
            out[:, c] = np.bincount(self.neighbour, gradient_pc[:, c], minlength=n_all)
            out[:, c] -= np.bincount(self.centre, gradient_pc[:, c], minlength=n_all)
        return out


def find_pairs(structure: Structure, cutoff: float) -> Pairs:
    """All directed pairs with a distance below `cutoff` (Angstrom), images of small cells included.

    Raises:
        StructureError: two atoms closer than 0.2 Angstrom.
    """
    n = len(structure)
    search = NeighborList(cutoff=cutoff, full_list=True, sorted=True)
    i, j, vectors, distances = search.compute(
        points=structure.positions, box=structure.cell, periodic=structure.periodic, quantities="ijDd"
    )
    if len(distances) and distances.min() < SHORTEST_DISTANCE:
        k = int(distances.argmin())
        raise StructureError(
            f"`positions`: atoms {int(i[k])} and {int(j[k])} overlap, {distances[k]:.3g} Angstrom apart "
            f"(at least {SHORTEST_DISTANCE} needed)"
        )
    first = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(i.astype(np.int64), minlength=n), out=first[1:])
    return Pairs(first, j.astype(np.int64), np.ascontiguousarray(vectors))
