"""The linear maps from kernel weights to energies and forces of a whole data set.

All frames stand side by side as one system without interactions between them, so that every array of the core
serves unchanged. Weights are whitened: y = K U v, with U from `sparse.whitening`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.kernel import normalise, normalise_vjp, sparse_kernel
from kqeq_md.neighbours import Pairs, find_pairs
from kqeq_md.structure import Floats
from kqeq_md.train.data import Frame

Progress = Callable[[Any, str], Any]
"""Wraps an iterable with a known length and a title; shows how far it is."""


@dataclass(frozen=True)
class Batch:
    """Frames side by side.

    Attributes:
        start: atoms of frame f are start[f]:start[f + 1], shape (n_frames + 1,).
        species: element index, shape (n,).
        pairs: neighbours of all atoms.
        unit, length, coefficients: normalised power spectrum, its norm, density coefficients.
    """

    start: NDArray[np.int64]
    species: NDArray[np.int64]
    pairs: Pairs
    unit: Floats
    length: Floats
    coefficients: Floats

    def per_frame(self, values: Floats) -> Floats:
        """Sums of per-atom values over each frame, shape (n_frames, ...)."""
        out: Floats = np.add.reduceat(values, self.start[:-1], axis=0)
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
    p, coefficients = descriptor.power_spectrum(pairs, species)
    unit, length = normalise(p)
    return Batch(start, species, pairs, unit, length, coefficients)


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
            out[rows, columns] = sparse_kernel(batch.unit[rows], self.points[element], self.zeta) @ self.whiten[element]
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
    overlaps = [batch.unit[batch.species == e] @ points.T for e, points in enumerate(basis.points)]

    def fill(m: int) -> None:
        grad_unit = np.zeros_like(batch.unit)
        for element, points in enumerate(basis.points):
            if m < len(points):
                slope = basis.zeta * overlaps[element][:, m] ** (basis.zeta - 1)
                grad_unit[batch.species == element] = slope[:, None] * points[m]
        grad_p = normalise_vjp(batch.unit, batch.length, grad_unit)
        grad = descriptor.power_spectrum_vjp(batch.pairs, batch.species, batch.coefficients, grad_p)
        for element, rows in enumerate(pairs_of):
            if m < len(basis.points[element]):
                weighted = np.zeros_like(grad)
                for columns, weights in zip(raw, centre_weights, strict=True):
                    weighted[rows] = weights[centre[rows], None] * grad[rows]
                    columns[element][:, m] = -batch.pairs.scatter(weighted, n).ravel()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(fill, m) for m in range(most)]
        try:
            for job in progress(jobs, "reverse passes, one per sparse point"):
                job.result()
        except BaseException:  # Ctrl-C: do not work off the queue first
            pool.shutdown(cancel_futures=True)
            raise
    return [np.concatenate([r @ u for r, u in zip(part, basis.whiten, strict=True)], axis=1) for part in raw]
