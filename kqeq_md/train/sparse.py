"""Sparse points: few atoms whose surroundings stand for all."""

from __future__ import annotations

import numpy as np

from kqeq_md.structure import Floats


def farthest_points(unit: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Up to `count` rows of `unit`, each as far as possible from those before; shape (m, size).

    The distance of two unit vectors is 2 - 2 p.p'; the search ends early when all rows stand for themselves.
    Rows are rounded to single precision, which is what a model file stores.

    Reference: Gonzalez, Theor. Comput. Sci. 38, 293 (1985), doi:10.1016/0304-3975(85)90224-5.
    """
    chosen = [int(generator.integers(len(unit)))]
    distance = 2.0 - 2.0 * unit @ unit[chosen[0]]
    while len(chosen) < min(count, len(unit)) and distance.max() > 1e-10:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, 2.0 - 2.0 * unit @ unit[chosen[-1]])
    return unit[chosen].astype(np.float32).astype(np.float64)


def whitening(kernel: Floats, drop: float = 1e-9) -> Floats:
    """U with U^T K_mm U = 1 on the space that K_mm spans, shape (m, rank).

    In the basis K_nm U a Gaussian process prior is the identity, which keeps least squares well conditioned;
    eigenvalues below `drop` of the largest carry nothing but rounding.
    """
    eigenvalues, vectors = np.linalg.eigh(kernel)
    keep = eigenvalues > drop * eigenvalues[-1]
    out: Floats = vectors[:, keep] / np.sqrt(eigenvalues[keep])
    return out
