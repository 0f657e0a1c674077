"""The linear maps from kernel weights to energies, forces and virials of a batch of frames.

Frames stand side by side as one system without interactions between them, so that every array of the core serves
unchanged. A data set is a row of batches, each of which is forgotten before the next: its size does not matter.
Weights are whitened: y = K U v, with U from `sparse.whitening`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.kernel import sparse_kernel
from kqeq_md.local_part import LARGEST_GROUP, same_element
from kqeq_md.machine.threads import in_parallel, kernel_threads
from kqeq_md.neighbours.half_list import Pairs, find_pairs
from kqeq_md.structure import Floats
from kqeq_md.train.data import Frame

Progress = Callable[[Any, str], Any]
"""Wraps an iterable with a known length and a title; shows how far it is."""


BATCH = 1000
"""Atoms side by side: designs of a batch take 24 bytes times atoms, columns and kinds of weights (0.4 GB for 6,000)."""


@dataclass(frozen=True)
class Group:
    """Atoms of one element side by side, as in `LocalPart`.

    Attributes:
        element: index of the element.
        rows: the atoms, shape (n,).
        density: c in blocks, shapes (lm, a, lanes).
        unit: normalised power spectrum, shape (size, n).
        length: its norm, shape (n,).
    """

    element: int
    rows: NDArray[np.int64]
    density: list[Floats]
    unit: Floats
    length: Floats


@dataclass(frozen=True)
class Batch:
    """Frames side by side.

    Attributes:
        frames: with their labels.
        start: atoms of frame f are start[f]:start[f + 1], shape (n_frames + 1,).
        species: element index, shape (n,).
        pairs: neighbours of all atoms.
        groups: all atoms with their power spectra.
    """

    frames: Sequence[Frame]
    start: NDArray[np.int64]
    species: NDArray[np.int64]
    pairs: Pairs
    groups: Sequence[Group]

    def atoms(self, f: int) -> slice:
        """The atoms of a frame."""
        return slice(int(self.start[f]), int(self.start[f + 1]))

    def pairs_of(self, f: int) -> slice:
        """The pairs of a frame."""
        return slice(int(self.pairs.first[self.start[f]]), int(self.pairs.first[self.start[f + 1]]))

    def per_frame(self, values: Floats) -> Floats:
        """Sums of per-atom values over each frame, shape (n_frames, ...)."""
        out: Floats = np.add.reduceat(values, self.start[:-1], axis=0)
        return out

    def spectra(self, element: int) -> Floats:
        """Normalised power spectra of all atoms of one element, in their order, shape (n, size)."""
        parts = [group.unit.T for group in self.groups if group.element == element]
        return np.concatenate(parts) if parts else np.empty((0, self.groups[0].unit.shape[0]))


def split_into_batches(frames: Sequence[Frame], size: int = BATCH) -> list[list[Frame]]:
    """The frames in their order, so many together that they have about `size` atoms."""
    out: list[list[Frame]] = [[]]
    atoms = 0
    for frame in frames:
        if out[-1] and atoms + len(frame.structure) > size:
            out.append([])
            atoms = 0
        out[-1].append(frame)
        atoms += len(frame.structure)
    return out


def make_batch(frames: Sequence[Frame], descriptor: Descriptor, cutoff: float, elements: Sequence[int]) -> Batch:
    """Neighbours and power spectra of all frames; `elements` are the atomic numbers in the order of species."""
    sizes = np.array([len(frame.structure) for frame in frames])
    start = np.concatenate([[0], np.cumsum(sizes)])
    parts = [find_pairs(frame.structure, cutoff) for frame in frames]
    counts = np.concatenate([np.diff(part.first) for part in parts])
    pairs = Pairs(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([part.neighbour + offset for part, offset in zip(parts, start[:-1], strict=True)]),
        np.concatenate([part.vectors for part in parts]),
    )
    numbers = np.concatenate([frame.structure.numbers for frame in frames])
    species = np.searchsorted(np.array(elements), numbers)
    groups = []
    for element, rows in same_element(species, LARGEST_GROUP):
        density = descriptor.density(rows, pairs, species)
        groups.append(Group(element, rows, density, *descriptor.spectrum(density)))
    return Batch(frames, start, species, pairs, groups)


@dataclass(frozen=True)
class Basis:
    """Sparse points and whitening per species; columns of all species stand side by side.

    Attributes:
        points: unit power spectra, shapes (m, size).
        whiten: U, shapes (m, rank).
        zeta: exponent of the kernel.
    """

    points: tuple[Floats, ...]
    whiten: tuple[Floats, ...]
    zeta: int

    @property
    def columns(self) -> list[slice]:
        """Where the columns of each species stand."""
        ends = np.cumsum([0] + [u.shape[1] for u in self.whiten])
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    @property
    def size(self) -> int:
        """Number of columns."""
        return sum(u.shape[1] for u in self.whiten)

    def weights(self, v: Floats) -> list[Floats]:
        """Kernel weights w = U v per species."""
        return [u @ v[columns] for u, columns in zip(self.whiten, self.columns, strict=True)]

    def kernel(self, batch: Batch) -> Floats:
        """K U, shape (n, size): zero in the columns of other species."""
        out = np.zeros((len(batch.species), self.size))
        for element, columns in enumerate(self.columns):
            rows = np.flatnonzero(batch.species == element)
            kernel = sparse_kernel(batch.spectra(element), self.points[element], self.zeta)
            out[rows, columns] = kernel @ self.whiten[element]
        return out


@dataclass(frozen=True)
class ForceDesign:
    """-d/dR and -d/d(strain) of sum_i a_i (K U)_i for each column.

    Attributes:
        forces: eV/Angstrom per unit of v, shape (3 n, columns).
        virials: of each frame with a stress label, by its number: xx, yy, zz, yz, xz, xy; eV, shape (6, columns).
    """

    forces: Floats
    virials: dict[int, Floats]


VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
"""Rows and columns of xx, yy, zz, yz, xz, xy."""


def force_design(
    batch: Batch, descriptor: Descriptor, basis: Basis, centre_weights: Sequence[Floats]
) -> list[ForceDesign]:
    """The designs of each a. One reverse pass through the descriptor per sparse point gives the derivative of every
    atom's kernel with it, because each pair belongs to one centre.

    Args:
        batch: some frames.
        descriptor: its power spectrum.
        basis: sparse points.
        centre_weights: several a, shapes (n,): charges for q.chi, psi for learned reference charges, ones for the
            short-range energy.
    """
    n = len(batch.species)
    centre = batch.pairs.centre
    pairs_of = [np.flatnonzero(batch.species[centre] == element) for element in range(len(basis.points))]
    stressed = [f for f, frame in enumerate(batch.frames) if frame.stress is not None]
    forces = [[np.zeros((3 * n, len(points))) for points in basis.points] for _ in centre_weights]
    virials = [[np.zeros((len(stressed), 6, len(points))) for points in basis.points] for _ in centre_weights]
    overlaps = [basis.points[group.element] @ group.unit for group in batch.groups]

    def fill(m: int) -> None:
        grad = np.zeros_like(batch.pairs.vectors)
        for group, overlap in zip(batch.groups, overlaps, strict=True):
            if m < len(overlap):
                slope = basis.zeta * overlap[m] ** (basis.zeta - 1)
                descriptor.spectrum_vjp(
                    group.rows, batch.pairs, batch.species, group.density, group.unit, group.length,
                    np.outer(basis.points[group.element][m], slope), grad,
                )  # fmt: skip
        for element, rows in enumerate(pairs_of):
            if m < len(basis.points[element]):
                weighted = np.zeros_like(grad)
                for columns, strained, weights in zip(forces, virials, centre_weights, strict=True):
                    weighted[rows] = weights[centre[rows], None] * grad[rows]
                    columns[element][:, m] = -batch.pairs.scatter(weighted, n).ravel()
                    for row, f in enumerate(stressed):
                        own = batch.pairs_of(f)
                        strain = batch.pairs.vectors[own].T @ weighted[own]
                        strained[element][row, :, m] = -0.5 * (strain + strain.T)[VOIGT]

    in_parallel(fill, range(max(len(points) for points in basis.points)), kernel_threads())
    kinds, elements = range(len(centre_weights)), range(len(pairs_of))
    pieces = [(raw, a, e) for raw in (forces, virials) for a in kinds for e in elements]
    white = in_parallel(lambda piece: piece[0][piece[1]][piece[2]] @ basis.whiten[piece[2]], pieces, kernel_threads())
    designs = []
    for a in kinds:
        own = [value for (_, b, _), value in zip(pieces, white, strict=True) if a == b]
        strained = np.concatenate(own[len(elements) :], axis=2)
        designs.append(
            ForceDesign(np.concatenate(own[: len(elements)], axis=1), dict(zip(stressed, strained, strict=True)))
        )
    return designs
