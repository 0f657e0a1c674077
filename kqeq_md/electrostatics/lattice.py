"""Shortest vectors of a lattice: sums over a skewed cell are done in its reduced form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from kqeq_md.structure import Floats

GAIN = 1e-12
"""A vector counts as shorter only beyond rounding, so that the reduction ends."""


def reduced_cell(cell: Floats, pbc: Sequence[bool] = (True, True, True)) -> Floats:
    """The same lattice by its shortest vectors (Minkowski-reduced); its handedness may change.

    Only the periodic vectors are mixed; the others keep their rows. A reduced cell needs the fewest images within a
    cutoff: each of its heights is at least 1/sqrt(2) of the vector that stands on it.

    Args:
        cell: lattice vectors as rows, Angstrom, shape (3, 3).
        pbc: which of them are periodic.

    Reference: Nguyen and Stehle, ACM Trans. Algorithms 5, 46 (2009), doi:10.1145/1597036.1597050.
    """
    out = np.array(cell, dtype=np.float64)
    periodic = np.asarray(pbc, dtype=bool)
    out[periodic] = greedy_reduction(out[periodic])
    return out


def greedy_reduction(vectors: Floats) -> Floats:
    """The shortest vectors that span the lattice of up to three `vectors`, by length; shape (m, 3)."""
    if len(vectors) < 2:
        return vectors
    while True:
        vectors = vectors[np.argsort(np.linalg.norm(vectors, axis=1), kind="stable")]
        shorter, longest = greedy_reduction(vectors[:-1]), vectors[-1]
        remainder = longest - closest_point(shorter, longest)
        vectors = np.vstack([shorter, remainder])
        if np.linalg.norm(remainder) >= (1.0 - GAIN) * np.linalg.norm(longest):
            return np.vstack([shorter, longest])


def closest_point(vectors: Floats, target: Floats) -> Floats:
    """The point closest to `target` in the lattice of one or two reduced `vectors`, shape (3,).

    For reduced vectors it is at a corner of the lattice cell that holds the projection of the target, so within one
    step of the rounded coefficients.
    """
    coefficients = np.rint(target @ np.linalg.pinv(vectors))
    steps = np.array(list(product((0.0, -1.0, 1.0), repeat=len(vectors))))
    points = (coefficients + steps) @ vectors
    closest: Floats = points[np.argmin(np.linalg.norm(target - points, axis=1))]
    return closest
