"""What is measured: chains and clusters of growing size, copies of a fragment, a fragment in two pieces.

All of them are open and without field: boundaries and fields of the user's structures are no part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kqeq_md.charges.fragments import bonds, connected_fragments, nearest_image
from kqeq_md.diagnose.fragment import formula
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats, Structure

SPACING = 3.0
"""Angstrom. Closest contact of neighbouring copies in a chain: that of molecules which touch."""

LENGTHS = (2, 4, 8, 16, 32)
"""Copies in a chain."""

MOST_ATOMS = 2048
"""Of the chains and clusters made here; larger ones take minutes and show the same."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One structure among others that are measured alike.

    Attributes:
        structure: open and neutral, unless it is the user's own.
        group: fragment of each atom, shape (n,).
        size: how long or large it is, in the unit of its series.
        axis: unit vector along which polarizability counts, shape (3,); None for the mean over all directions.
    """

    structure: Structure
    group: Ints
    size: int
    axis: Floats | None


@dataclass(frozen=True, eq=False)
class Series:
    """Samples of growing size; in words, what they are, and what their size counts."""

    samples: tuple[Sample, ...]
    title: str
    unit: str


@dataclass(frozen=True, eq=False)
class Pieces:
    """Two pieces of matter to be pulled apart.

    Attributes:
        structure: open, the pieces in contact.
        group: piece of each atom, 0 or 1, shape (n,).
        axis: unit vector from the first piece to the second one across their contact, shape (3,).
        contact: distance of the two atoms there, Angstrom.
        charges: of each piece where charge cannot leave it, e.
    """

    structure: Structure
    group: Ints
    axis: Floats
    contact: float
    charges: tuple[float, float] = (0.0, 0.0)

    def at(self, distance: float) -> Structure:
        """The two atoms of the contact `distance` apart, Angstrom; charged with the sum of `charges`."""
        shift = np.outer(self.group, (distance - self.contact) * self.axis)
        return Structure(self.structure.numbers, self.structure.positions + shift, charge=sum(self.charges))

    @property
    def names(self) -> tuple[str, str]:
        """Formulas of the two pieces."""
        first, second = (formula(self.structure.numbers[self.group == piece]) for piece in (0, 1))
        return first, second


def longest_axis(positions: Floats) -> Floats:
    """Unit vector along which positions (Angstrom, shape (n, 3)) spread most, its largest component positive."""
    centred = positions - positions.mean(axis=0)
    if not centred.any():
        return np.array([0.0, 0.0, 1.0])
    axis: Floats = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    return axis * np.sign(axis[np.argmax(np.abs(axis))])


def pitch(positions: Floats, axis: Floats, spacing: float) -> float:
    """How far a copy has to move along `axis` (unit vector) for its closest contact with the original to be `spacing`.

    The largest t with |d_ij + t axis| = spacing for any two atoms, d_ij = R_i - R_j; Angstrom.
    """
    d = (positions[:, None] - positions[None, :]).reshape(-1, 3)
    along = d @ axis
    across2 = np.maximum((d**2).sum(axis=1) - along**2, 0.0)
    meet = across2 < spacing**2
    return float((np.sqrt(spacing**2 - across2[meet]) - along[meet]).max())


def copies(fragment: Structure, n: int, spacing: float) -> Sample:
    """A chain of n copies along their longest axis, each a fragment; closest contacts `spacing`, Angstrom."""
    axis = longest_axis(fragment.positions)
    step = pitch(fragment.positions, axis, spacing) * axis
    positions = np.concatenate([fragment.positions + k * step for k in range(n)])
    group = np.repeat(np.arange(n), len(fragment))
    return Sample(Structure(np.tile(fragment.numbers, n), positions), group, n, axis)


def chains(fragment: Structure, spacing: float) -> Series:
    """Chains of 2 to 32 copies, fewer of large fragments."""
    lengths = [n for n in LENGTHS if n * len(fragment) <= MOST_ATOMS] or [1]
    samples = tuple(copies(fragment, n, spacing) for n in lengths)
    return Series(samples, f"chains of {formula(fragment.numbers)}, {spacing:g} A apart", "copies")


def clusters(structure: Structure) -> Series:
    """1, 2, 4, ... whole molecules around the one in the middle."""
    fragments = connected_fragments(structure)
    whole = fragments.whole(structure)
    sizes = np.bincount(fragments.group)
    centres = np.stack([np.bincount(fragments.group, whole[:, a]) / sizes for a in range(3)], axis=1)
    first = int(np.argmin(np.linalg.norm(centres - centres.mean(axis=0), axis=1)))
    away = centres - centres[first]
    away = nearest_image(structure)(away)
    order = np.argsort(np.linalg.norm(away, axis=1), kind="stable")
    samples = []
    n = 1
    while n <= len(order) and sizes[order[:n]].sum() <= MOST_ATOMS:
        atoms = np.flatnonzero(np.isin(fragments.group, order[:n]))
        group = fragments.group[atoms]
        positions = whole[atoms] - centres[group] + away[group]
        samples.append(Sample(Structure(structure.numbers[atoms], positions), group, len(atoms), None))
        n *= 2
    return Series(tuple(samples), "clusters of molecules from the structure", "atoms")


def series_of(structures: Sequence[Structure]) -> Series | None:
    """Structures of different sizes as they are, along their longest axes; None where there are not two sizes.

    The size is the number of atoms other than hydrogen, as chemists count chains.
    """
    by_size = {_heavy(structure): structure for structure in reversed(structures)}
    if len(by_size) < 2:
        return None
    samples = []
    for size in sorted(by_size):
        structure = by_size[size]
        fragments = connected_fragments(structure)
        positions = fragments.whole(structure)
        open_structure = Structure(structure.numbers, positions)
        samples.append(Sample(open_structure, fragments.group, size, longest_axis(positions)))
    return Series(tuple(samples), "the structures, along their longest axes", "atoms other than H")


def _heavy(structure: Structure) -> int:
    return int((structure.numbers > 1).sum()) or len(structure)


def as_given(structures: Sequence[Structure]) -> tuple[Sample, ...]:
    """The user's structures with boundary, charge and field, counted from 1; molecules by connectivity."""
    return tuple(
        Sample(structure, connected_fragments(structure).group, count, None)
        for count, structure in enumerate(structures, 1)
    )


def first_molecule(structure: Structure) -> Structure | None:
    """The first connected fragment of more than one atom, whole and open.

    None where there is none, or where fragments close over the boundary.
    """
    fragments = connected_fragments(structure)
    large = np.flatnonzero(np.bincount(fragments.group) > 1)
    if len(large) == 0 or len(fragments.windings) > 0:
        return None
    atoms = np.flatnonzero(fragments.group == large[0])
    charge = structure.charge if len(fragments) == 1 else 0.0
    return Structure(structure.numbers[atoms], fragments.whole(structure)[atoms], charge=charge)


def cut(molecule: Structure) -> Pieces | None:
    """A molecule in two, at a bond that alone holds it together; None where there is none.

    Of several bonds that which leaves unlike parts (like ones share charge evenly, whatever the model) of the most even
    size. The first piece is that of the first atom, and has the charge of the molecule.
    """
    centre, neighbour, vectors = bonds(molecule)
    n, found, best = len(molecule), None, (False, 0)
    for k in np.flatnonzero(centre < neighbour):
        rest = ~(((centre == centre[k]) & (neighbour == neighbour[k]))
                 | ((centre == neighbour[k]) & (neighbour == centre[k])))  # fmt: skip
        graph = coo_array((np.ones(rest.sum()), (centre[rest], neighbour[rest])), shape=(n, n))
        parts, group = connected_components(graph, directed=False)
        unlike = formula(molecule.numbers[group == 0]) != formula(molecule.numbers[group == 1])
        rank = (unlike, int(min(np.bincount(group))))
        if parts == 2 and rank > best:
            found, best = (k, group), rank
    if found is None:
        return None
    k, group = found
    group = np.where(group == group[0], 0, 1)
    length = float(np.linalg.norm(vectors[k]))
    axis = vectors[k] / length * (1.0 if group[centre[k]] == 0 else -1.0)
    return Pieces(molecule, group, axis, length, (molecule.charge, 0.0))


def unlike_pair(structure: Structure) -> Pieces | None:
    """The first molecule or ion and the closest one of another composition; None where all are the same."""
    fragments = connected_fragments(structure)
    group, whole = fragments.group, fragments.whole(structure)
    kinds = [formula(structure.numbers[group == g]) for g in range(len(fragments))]
    unlike = np.flatnonzero([kinds[g] != kinds[0] for g in group])
    if len(unlike) == 0:
        return None
    first = np.flatnonzero(group == 0)
    d = (whole[unlike][None, :] - whole[first][:, None]).reshape(-1, 3)
    nearest = nearest_image(structure)(d)
    k = int(np.argmin(np.linalg.norm(nearest, axis=1)))
    second = np.flatnonzero(group == group[unlike[k % len(unlike)]])
    positions = np.concatenate([whole[first], whole[second] + nearest[k] - d[k]])
    length = float(np.linalg.norm(nearest[k]))
    numbers = structure.numbers[np.concatenate([first, second])]
    pieces = np.repeat([0, 1], [len(first), len(second)])
    return Pieces(Structure(numbers, positions), pieces, nearest[k] / length, length)
