"""The linear maps from kernel weights to energies and forces of a whole data set.

All frames stand side by side as one system without interactions between them, so that every array of the core
serves unchanged. Weights are whitened: y = K U v, with U from `sparse.whitening`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.kernel import sparse_kernel
from kqeq_md.local_part import LARGEST_GROUP, same_element
from kqeq_md.neighbours import Pairs, find_pairs
from kqeq_md.structure import Floats
from kqeq_md.threads import kernel_threads
from kqeq_md.train.data import Frame

Progress = Callable[[Any, str], Any]
"""Wraps an iterable with a known length and a title; shows how far it is."""


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
        start: atoms of frame f are start[f]:start[f + 1], shape (n_frames + 1,).
        species: element index, shape (n,).
        pairs: neighbours of all atoms.
        groups: all atoms with their power spectra.
    """

    start: NDArray[np.int64]
    species: NDArray[np.int64]
    pairs: Pairs
    groups: Sequence[Group]

    def per_frame(self, values: Floats) -> Floats:
        """Sums of per-atom values over each frame, shape (n_frames, ...)."""
        out: Floats = np.add.reduceat(values, self.start[:-1], axis=0)
        return out

    def spectra(self, element: int) -> Floats:
        """Normalised power spectra of all atoms of one element, in their order, shape (n, size)."""
        return np.concatenate([group.unit.T for group in self.groups if group.element == element])


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
    return Batch(start, species, pairs, groups)


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


def force_design(
    batch: Batch, descriptor: Descriptor, basis: Basis, centre_weights: Sequence[Floats], progress: Progress
) -> list[Floats]:
    """-d/dR of sum_i a_i (K U)_i for each column and each a.

    One reverse pass through the descriptor per sparse point gives the derivative of every atom's kernel with it,
    because each pair belongs to one centre.

    Args:
        batch: the data set.
        descriptor: its power spectrum.
        basis: sparse points.
        centre_weights: several a, shapes (n,): ones for the short-range energy, charges for q.chi.
        progress: shown over the sparse points.

    Returns:
        For each a, eV/Angstrom per unit of v, shape (3 n, basis.size).
    """
    n = len(batch.species)
    most = max(len(points) for points in basis.points)
    centre = batch.pairs.centre
    pairs_of = [np.flatnonzero(batch.species[centre] == element) for element in range(len(basis.points))]
    raw = [[np.zeros((3 * n, len(points))) for points in basis.points] for _ in centre_weights]
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
                for columns, weights in zip(raw, centre_weights, strict=True):
                    weighted[rows] = weights[centre[rows], None] * grad[rows]
                    columns[element][:, m] = -batch.pairs.scatter(weighted, n).ravel()

    with ThreadPoolExecutor(kernel_threads()) as pool:
        jobs = [pool.submit(fill, m) for m in range(most)]
        try:
            for job in progress(jobs, "reverse passes, one per sparse point"):
                job.result()
        except BaseException:  # Ctrl-C: do not work off the queue first
            pool.shutdown(cancel_futures=True)
            raise
    return [np.concatenate([r @ u for r, u in zip(part, basis.whiten, strict=True)], axis=1) for part in raw]
