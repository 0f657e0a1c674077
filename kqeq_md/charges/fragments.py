"""Which atoms belong together: molecules, or whatever else keeps its own charge.

Atoms are bonded when they are closer than BONDED (r_i + r_j), r the covalent radii; fragments are the connected parts
of that graph, or given. Each fragment is also spanned by a tree: tied atom by atom to a neighbour at its nearest image,
it is whole wherever an engine has wrapped its atoms to, so that sums of q_i R_i over it mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kqeq_md.charges.constraints import grouping
from kqeq_md.electrostatics.lattice import reduced_cell
from kqeq_md.elements import COVALENT_RADII
from kqeq_md.machine.jit import compiled
from kqeq_md.neighbours.half_list import find_pairs, lattice_of
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats, Structure

BONDED = 1.25
"""Times the sum of covalent radii: above any vibration of a bond, below the contacts between molecules."""

TIE = 1e-3
"""Angstrom."""

GAP = 1e-6
"""Angstrom. A bond that a whole fragment misses by more closes over the cell."""


@dataclass(frozen=True, eq=False)
class Fragments:
    """A partition of the atoms, frozen: bonds may stretch later without changing it.

    Attributes:
        group: fragment of each atom, counted from 0, shape (n,).
        rest: the last fragment holds what no other one names.
        parent: the atom that each one is tied to; the first of a fragment to itself, shape (n,).
        levels: atoms by their distance from the first one of their fragment along the tree, the first ones left out.
        windings: lattice vectors, in cells, by which bonds of a fragment close over a periodic boundary (polymers,
            crystals); shape (n_windings, 3).
        loose: a fragment consists of pieces that no bond joins, which have no place relative to each other in a
            periodic cell.
    """

    group: Ints
    rest: bool
    parent: Ints
    levels: tuple[Ints, ...]
    windings: Ints
    loose: bool

    def __len__(self) -> int:
        return int(self.group.max()) + 1

    def whole(self, structure: Structure) -> Floats:
        """Positions with each fragment in one piece around its first atom, Angstrom, shape (n, 3).

        Pieces that no bond joins come to their first atom by the nearest image.
        """
        positions = np.array(structure.positions)
        if not any(structure.pbc):
            return positions
        nearest = nearest_image(structure)
        for level in self.levels:
            parents = positions[self.parent[level]]
            positions[level] = parents + nearest(positions[level] - parents)
        return positions

    def span(self, structure: Structure) -> float:
        """Largest part of a periodic lattice vector between an atom and the one it is tied to: at 1/2 another image
        becomes the nearest one."""
        whole = self.whole(structure)
        parts = (whole - whole[self.parent]) @ np.linalg.inv(reduced_cell(lattice_of(structure), structure.pbc))
        return float(np.abs(parts * structure.pbc).max())


def connected_fragments(structure: Structure) -> Fragments:
    """Fragments by connectivity, in the order of their first atoms.

    Raises:
        StructureError: two atoms closer than 0.2 Angstrom.
    """
    centre, neighbour, vectors = bonds(structure)
    return _spanned(structure, connected_parts(len(structure), centre, neighbour), False, centre, neighbour, vectors)


@compiled
def connected_parts(n: int, centre: Ints, neighbour: Ints) -> Ints:
    """Part of a graph that each of n nodes belongs to, counted in the order of their first nodes, shape (n,).

    Each node knows an earlier one of its part, or is the first (union-find). scipy has the same, but loading its graphs
    takes a tenth of a second.
    """
    earlier = np.arange(n)
    for k in range(len(centre)):
        i, j = centre[k], neighbour[k]
        while earlier[i] != i:
            earlier[i] = earlier[earlier[i]]
            i = earlier[i]
        while earlier[j] != j:
            earlier[j] = earlier[earlier[j]]
            j = earlier[j]
        earlier[max(i, j)] = min(i, j)
    part, found = np.empty(n, dtype=np.int64), 0
    for i in range(n):
        if earlier[i] == i:
            part[i], found = found, found + 1
        else:
            part[i] = part[earlier[i]]
    return part


def given_fragments(structure: Structure, fragments: ArrayLike | Sequence[ArrayLike]) -> Fragments:
    """Fragments from molecule numbers, or from lists of atoms, as `grouping` takes them.

    Atoms that meet through several images (an ion pair in a narrow cell) are joined by the shortest way alone: who
    gives a pair means one of them. Images that are equally far, to TIE, are all kept, for none can be meant.

    Raises:
        ChargeError: anything else.
        StructureError: two atoms closer than 0.2 Angstrom.
    """
    group, rest = grouping(len(structure), fragments)
    centre, neighbour, vectors = bonds(structure)
    inside = np.flatnonzero((group[centre] == group[neighbour]) & (centre < neighbour))
    length = np.linalg.norm(vectors[inside], axis=1)
    pair = np.unique(centre[inside] * len(structure) + neighbour[inside], return_inverse=True)[1]
    shortest = np.full(len(inside), np.inf)
    np.minimum.at(shortest, pair, length)
    inside = inside[length < shortest[pair] + TIE]
    i, j, d = centre[inside], neighbour[inside], vectors[inside]
    return _spanned(structure, group, rest, np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([d, -d]))


def nearest_image(structure: Structure) -> Callable[[Floats], Floats]:
    """The function that takes lattice vectors off vectors between atoms (Angstrom, shape (m, 3)) to make them short."""
    lattice = reduced_cell(lattice_of(structure), structure.pbc)
    inverse, periodic = np.linalg.inv(lattice), np.array(structure.pbc)

    def shorten(vectors: Floats) -> Floats:
        out: Floats = vectors - (np.rint(vectors @ inverse) * periodic) @ lattice
        return out

    return shorten


def bonds(structure: Structure) -> tuple[Ints, Ints, Floats]:
    """Centres, neighbours and vectors of all bonds, each in both directions.

    Two atoms, or an atom and itself, may be bonded through several images: in narrow cells that is how a fragment
    closes over the boundary.
    """
    radius = COVALENT_RADII[structure.numbers]
    pairs = find_pairs(structure, 2.0 * BONDED * float(radius.max()))
    centre, neighbour = pairs.centre, pairs.neighbour
    bonded = np.linalg.norm(pairs.vectors, axis=1) < BONDED * (radius[centre] + radius[neighbour])
    return centre[bonded], neighbour[bonded], pairs.vectors[bonded]


def _spanned(
    structure: Structure, group: Ints, rest: bool, centre: Ints, neighbour: Ints, vectors: Floats
) -> Fragments:
    """Trees by breadth-first search from the first atom of each fragment, all fragments at once.

    Pieces of a fragment that no bond joins are tied to its first atom.
    """
    n = len(structure)
    parent, placed = np.arange(n), np.zeros(n, dtype=bool)
    roots = np.unique(group, return_index=True)[1]
    placed[roots] = True
    levels: list[Ints] = []
    loose = False
    while not placed.all():
        grows = placed[centre] & ~placed[neighbour]
        if grows.any():
            parent[neighbour[grows]] = centre[grows]
            reached = np.unique(neighbour[grows])
        else:  # the next piece of each fragment that has one
            left = np.flatnonzero(~placed)
            reached = left[np.unique(group[left], return_index=True)[1]]
            parent[reached] = roots[group[reached]]
            loose = True
        placed[reached] = True
        levels.append(reached)
    spanned = Fragments(group, rest, parent, tuple(levels), np.empty((0, 3), dtype=np.int64), loose)
    whole = spanned.whole(structure)
    gaps = vectors - (whole[neighbour] - whole[centre])
    open_bonds = np.abs(gaps).max(axis=1, initial=0.0) > GAP
    cells = np.rint(gaps[open_bonds] @ np.linalg.inv(lattice_of(structure))).astype(np.int64)
    return Fragments(group, rest, parent, tuple(levels), np.unique(cells, axis=0), loose)
