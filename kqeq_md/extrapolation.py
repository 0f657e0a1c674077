"""How far an atom's surroundings are from those that a model was trained on, from its sparse points alone.

    measure_i = max_terms min_m |u_i - u_m| / r_e,   |u - u'|^2 = 2 - 2 u . u'

over the sparse points u_m of its element e. The scale r_e is how far apart they lie: nine in ten have another one
within r_e. Farthest-point sampling (`kqeq train`) spreads them evenly, and none of the training atoms lies farther from
its nearest point than the closest two of these from each other: they measure at most 1. Atoms of no training frame
measure a little more, the more so the more of the training atoms are sparse points. What kernels do not see is not
measured: pair terms, total charges, fields and whatever is beyond the cutoff.

Of points that were chosen otherwise (an imported potential's by CUR decomposition) nothing bounds how far training
atoms lie from them: measures up to 3 may mean nothing there.

Reference: Gonzalez, Theor. Comput. Sci. 38, 293 (1985), doi:10.1016/0304-3975(85)90224-5.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from kqeq_md.local_part import LARGEST_GROUP, Ints, LocalKernels, Term, same_element
from kqeq_md.neighbours import Pairs
from kqeq_md.structure import Floats
from kqeq_md.threads import in_parallel

LARGEST_MEASURE = 1.75
"""Atoms beyond it extrapolate. With 300 points of NaCl or water the largest of a test set is 1.5, of NaCl melts at
1,200 to 1,500 K 1.3; beyond it forces of the shipped model are mostly 1 to 9 eV/Angstrom off, in its test set 0.1."""

LARGEST_IMPORTED = 3.0
"""The same of imported models, whose points were chosen otherwise."""

NEIGHBOURLY = 0.9
"""Of the sparse points have another one within r_e. The rest may be one of a kind, as a lone atom's is: they would
make everything near. The closest two would make everything far if all training atoms, or doubles, are points."""

SAME = 1e-5
"""Points closer than that are one: where the search for farthest points ends, too."""

FARTHEST = float(np.sqrt(2.0))
"""Of unit vectors whose overlaps are not negative, as those of power spectra are."""


class Extrapolation:
    """The sparse points of a model with their scales.

    A point that has none of its kind beside it, and points that are all the same, say nothing about distances: the
    scale is the largest that there is, and atoms of the element measure at most 1. An element without kernel measures
    0: all that a model knows of it are constants.

    Args:
        kernels: of the model.

    Attributes:
        largest: measure beyond which atoms extrapolate.
    """

    def __init__(self, kernels: LocalKernels) -> None:
        self.largest = LARGEST_IMPORTED if "imported" in kernels.model.training else LARGEST_MEASURE
        self._terms = kernels.terms
        self._points = [term.sparse_points for term in kernels.model.terms]
        self._scales = [[spacing(points) for points in term] for term in self._points]

    def measure(self, species: Ints, pairs: Pairs, species_all: Ints, threads: int = 1) -> Floats:
        """The largest of all kernels' measures of each centre, shape (n,).

        It costs about as much as the local part of a step; memory is that of `LARGEST_GROUP` atoms for each thread.

        Args:
            species: element index of the centres, shape (n,).
            pairs: their neighbours within the model's cutoff at least.
            species_all: element index of owned atoms and ghosts, shape (n_all,).
            threads: how many work at once.
        """
        out = np.zeros(len(species))
        pieces = list(same_element(species, LARGEST_GROUP))
        for term, points, scales in zip(self._terms, self._points, self._scales, strict=True):
            known = [piece for piece in pieces if len(points[piece[0]])]
            nearest = in_parallel(partial(_nearest, term, points, pairs, species_all), known, threads)
            for (element, rows), distance in zip(known, nearest, strict=True):
                out[rows] = np.maximum(out[rows], distance / scales[element])
        return out


def spacing(points: Floats) -> float:
    """r_e of the points of one element, shape (m, size), in groups that bound memory."""
    alone = []
    for start in range(0, len(points), LARGEST_GROUP):
        apart = distances(points, points[start : start + LARGEST_GROUP].T)
        apart[apart < SAME] = FARTHEST
        alone.append(apart.min(axis=0))
    return float(np.quantile(np.concatenate(alone), NEIGHBOURLY)) if alone else FARTHEST


def distances(points: Floats, unit: Floats) -> Floats:
    """|u_m - u_i| of points, shape (m, size), and spectra, shape (size, n); shape (m, n).

    Lengths are not taken for 1: a spectrum without any density is zero, and the file's points are rounded.
    """
    squares = (points**2).sum(axis=1)[:, None] + (unit**2).sum(axis=0) - 2.0 * points @ unit
    out: Floats = np.sqrt(np.maximum(squares, 0.0))
    return out


def _nearest(
    term: Term, points: tuple[Floats, ...], pairs: Pairs, species_all: Ints, piece: tuple[int, Ints]
) -> Floats:
    """min_m |u_i - u_m| of one piece of atoms, shape (n,)."""
    element, rows = piece
    unit, _ = term.descriptor.spectrum(term.descriptor.density(rows, pairs, species_all))
    out: Floats = distances(points[element], unit).min(axis=0)
    return out
