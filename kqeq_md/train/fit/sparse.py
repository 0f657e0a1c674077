"""Sparse points: few atoms whose surroundings stand for all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from kqeq_md.structure import Floats

IN_MEMORY = 2**30
"""Bytes of spectra that are kept in memory while points are chosen; more of them wait in a file."""

SAME = 1e-10
"""Squared distance of two spectra from which on one stands for the other."""


def room_for_spectra(count: int, size: int) -> Floats:
    """An array of shape (count, size) to be filled; on disk, without a name there, where memory would not do."""
    if 8 * count * size <= IN_MEMORY:
        return np.empty((count, size))
    with tempfile.TemporaryDirectory() as folder:  # the open file outlives its name
        return np.memmap(Path(folder) / "spectra", dtype=np.float64, mode="w+", shape=(count, size))


def farthest_points(spectra: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Up to `count` rows of `spectra`, shape (n, size), each as far as possible from those before; shape (m, size).

    The squared distance is |p|^2 + |p'|^2 - 2 p.p'; the search ends early when all rows stand for themselves. Rows are
    rounded to single precision, which is what a model file stores.

    Reference: Gonzalez, Theor. Comput. Sci. 38, 293 (1985), doi:10.1016/0304-3975(85)90224-5.
    """
    square = np.einsum("nd,nd->n", spectra, spectra)  # 1, or 0 for an atom that is alone and has no density of its own

    def distance_to(row: int) -> Floats:
        out: Floats = square + square[row] - 2.0 * (spectra @ spectra[row])
        return out

    chosen = [int(generator.integers(len(spectra)))]
    distance = distance_to(chosen[0])
    while len(chosen) < min(count, len(spectra)) and distance.max() > SAME:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, distance_to(chosen[-1]))
    return np.asarray(spectra[chosen]).astype(np.float32).astype(np.float64)


def whitening(kernel: Floats, drop: float = 1e-9) -> Floats:
    """U with U^T K_mm U = 1 on the space that K_mm spans, shape (m, rank).

    In the basis K_nm U a Gaussian process prior is the identity, which keeps least squares well conditioned;
    eigenvalues below `drop` of the largest carry nothing but rounding.
    """
    eigenvalues, vectors = np.linalg.eigh(kernel)
    keep = eigenvalues > drop * eigenvalues[-1]
    out: Floats = vectors[:, keep] / np.sqrt(eigenvalues[keep])
    return out
