"""How far an atom is from those that a model was trained on.

Every model tells from its sparse points alone how far an atom's surroundings are from the training set's,

    d_i = max_terms min_m |u_i - u_m| / r_e,   |u - u'|^2 = 2 - 2 u . u'

over the sparse points u_m of its element e. The scale r_e is how far apart they lie: nine in ten have another one
within r_e. Farthest-point sampling (`kqeq train`) spreads them evenly, and none of the training atoms lies farther from
its nearest point than the closest two of these from each other: they measure at most 1. Atoms of no training frame
measure a little more, the more so the more of the training atoms are sparse points. Of points that were chosen
otherwise (an imported potential's by CUR decomposition) nothing bounds how far training atoms lie from them: d up to 3
may mean nothing there.

A model that was calibrated on held-out frames (`train.calibration`) has a threshold of its own, and a measure that
follows the errors of its forces: the force on an atom is made by the surroundings of its neighbours too, errors grow
with the force itself, and an atom may look the same in another charge state,

    measure_i = max(sqrt(1 + |F_i|^2 / F_0^2) max(sqrt(sum_j exp(-r_ij^2 / a^2) d_j^2), far(d_i)),
                    range(q_i),  range(Q / N))

with j = i in the sum, over neighbours within the cutoff. far(d) grows from 0 to the threshold where d reaches
LARGEST_MEASURE: where close contacts in the training set make the threshold high, foreign surroundings still count.
range(x) is 0 within what occurred in training, charges of its element and total charges per atom, and reaches the
threshold half a half width beyond; for a total charge of a sign that never occurred, at once.

a = REACH and F_0 = STEEP: on a random fifth of GFN2 water training frames that the fit had not seen, values that differ
by a factor of 1.5 or 2 rank errors a little worse (they were compared on the test sets below before). On test sets
(GFN2 clusters, 300 points) the 5 % of atoms with the largest measure have a median, mean and rms force error of

    water, split          2.5, 3.3, 5.5    of the median error of all atoms
    water, qeq            2.5, 2.9, 3.9
    NaCl clusters, qeq    1.6, 1.7, 1.9

where the 5 % with the largest errors have medians of 3.5 to 4.0. d_i alone gives 2.1, 2.5, 3.1 for water, qeq. In NaCl
the errors hardly depend on the surroundings (differences of four models give 0.9 to 1.4 for the median): most of them
are those of forces that point charges cannot have.

What neither sees is whatever is beyond the cutoff, and fields.

References: Gonzalez, Theor. Comput. Sci. 38, 293 (1985), doi:10.1016/0304-3975(85)90224-5 (farthest points).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kqeq_md.errors import ModelError
from kqeq_md.local_part import LARGEST_GROUP, Ints, LocalKernels, Term, same_element
from kqeq_md.machine.threads import in_parallel
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import Pairs
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.structure import Floats, Result

LARGEST_MEASURE = 1.75
"""Atoms beyond it extrapolate. With 300 points of NaCl or water the largest of a test set is 1.5, of NaCl melts at
1,200 to 1,500 K 1.3; beyond it forces of the shipped model are mostly 1 to 9 eV/Angstrom off, in its test set 0.1."""

LARGEST_IMPORTED = 3.0
"""The same of imported models, whose points were chosen otherwise."""

REACH = 2.0
"""Angstrom. Neighbours that far share 1/e of their d^2."""

STEEP = 4.0
"""eV/Angstrom. Forces that large have errors that grow with them."""

NARROWEST_CHARGES, NARROWEST_TOTAL = 0.02, 1e-6
"""e, e per atom. Half widths of ranges at least: all training frames may be neutral, but charges still vary."""

TOLERATED = 0.5
"""Charges of test sets with other compositions lie up to 0.05 half widths beyond those of training."""

LARGEST_RANGE = 2.0
"""Thresholds. How far beyond a range does not matter: with neutral training frames any total charge is without end."""

NEIGHBOURLY = 0.9
"""Of the sparse points have another one within r_e. The rest may be one of a kind, as a lone atom's is: they would
make everything near. The closest two would make everything far if all training atoms, or doubles, are points."""

SAME = 1e-5
"""Points closer than that are one: where the search for farthest points ends, too."""

FARTHEST = float(np.sqrt(2.0))
"""Of unit vectors whose overlaps are not negative, as those of power spectra are."""


@dataclass(frozen=True)
class Limits:
    """What a calibrated model knows of its limits: `training["extrapolation"]` of its file.

    Attributes:
        threshold: measure beyond which atoms extrapolate.
        charges: lowest and highest charge of each element in training, e, shape (n_species, 2).
        charge_per_atom: lowest and highest total charge per atom, e, shape (2,).
    """

    threshold: float
    charges: Floats
    charge_per_atom: Floats

    @classmethod
    def read(cls, record: Mapping[str, Any], symbols: Sequence[str]) -> Limits:
        """From the JSON of `train.calibration.calibrate`.

        Raises:
            ModelError: something is missing, not finite, or no range.
        """
        try:
            ranges = np.array([record["charges"].get(symbol, (-np.inf, np.inf)) for symbol in symbols], dtype=float)
            total = np.array(record["charge_per_atom"], dtype=float)
            limits = cls(float(record["threshold"]), ranges, total)
            well = ranges.shape == (len(symbols), 2) and total.shape == (2,) and 0.0 < limits.threshold < np.inf
            well = well and bool((ranges[:, 0] <= ranges[:, 1]).all()) and bool(total[0] <= total[1])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            well = False
        if not well:
            raise ModelError(
                "`training.extrapolation` must hold a positive `threshold`, and `charges` of elements and "
                f"`charge_per_atom` as lowest and highest, got {record!r:.200}"
            )
        return limits

    def beyond(self, species: Ints, charges: Floats) -> Floats:
        """What each atom's charge makes of the measure, shape (n,): 0 within what occurred in training.

        Args:
            species: element index, shape (n,).
            charges: e, shape (n,).
        """
        low, high = self.charges[species].T
        known = np.isfinite(high - low)
        low, high = np.where(known, low, charges), np.where(known, high, charges)
        half = np.maximum(0.5 * (high - low), NARROWEST_CHARGES)
        return self._scaled(np.abs(charges - 0.5 * (low + high)) / half)

    def far(self, distance: Floats) -> Floats:
        """What the distance alone makes of the measure, shape (n,): linear, the threshold at LARGEST_MEASURE."""
        beyond = (1.0 + TOLERATED) / LARGEST_MEASURE * distance - 1.0
        out: Floats = self.threshold * np.maximum(beyond, 0.0) / TOLERATED
        return out

    def beyond_total(self, charge: float, n_atoms: int) -> float:
        """The same of the total charge (e) of so many atoms."""
        each = charge / n_atoms
        low, high = self.charge_per_atom
        largest = max(high, NARROWEST_TOTAL) if each > 0.0 else min(low, -NARROWEST_TOTAL)
        return float(self._scaled(np.array(each / largest)))

    def _scaled(self, ratio: Floats) -> Floats:
        """The threshold at a ratio of 1 + TOLERATED to what occurred, 0 at 1."""
        out: Floats = self.threshold * np.clip((ratio - 1.0) / TOLERATED, 0.0, LARGEST_RANGE)
        return out

    def with_total(self, charge: float, n_atoms: int) -> Limits:
        """The limits if such a structure had been in training."""
        low, high = self.charge_per_atom
        each = charge / n_atoms
        return replace(self, charge_per_atom=np.array([min(low, each), max(high, each)]))


class Extrapolation:
    """The sparse points of a model with their scales.

    A point that has none of its kind beside it, and points that are all the same, say nothing about distances: the
    scale is the largest that there is, and atoms of the element measure at most 1. An element without kernel measures
    0: all that a model knows of it are constants.

    Args:
        kernels: of the model.

    Attributes:
        limits: of a calibrated model, else None.
        largest: measure beyond which atoms extrapolate.
    """

    def __init__(self, kernels: LocalKernels) -> None:
        self.limits = limits_of(kernels.model)
        self.largest = largest_measure(kernels.model)
        self._terms = kernels.terms
        self._points = [term.sparse_points for term in kernels.model.terms]
        self._scales = [[spacing(points) for points in term] for term in self._points]

    def distance(self, species: Ints, pairs: Pairs, species_all: Ints, threads: int = 1) -> Floats:
        """d_i, the largest of all kernels' of each centre, shape (n,).

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

    def surroundings(self, species: Ints, pairs: Pairs) -> Floats:
        """Vectors v_i of all kernels' u_i / r_e, one after the other, shape (n, size): atoms of one element are
        |v_i - v_j| apart in the units of d. Zeros where an element has no kernel; arguments as in `distance`."""
        columns = []
        for term, points, scales in zip(self._terms, self._points, self._scales, strict=True):
            out = np.zeros((len(species), points[0].shape[1]))
            for element, rows in same_element(species, LARGEST_GROUP):
                if len(points[element]):
                    unit, _ = term.descriptor.spectrum(term.descriptor.density(rows, pairs, species))
                    out[rows] = unit.T / scales[element]
            columns.append(out)
        return np.concatenate(columns, axis=1)

    def measure(self, species: Ints, pairs: Pairs, species_all: Ints, threads: int = 1, halo: Halo = SERIAL) -> Floats:
        """What surroundings alone say, shape (n,): d_i, shared among neighbours in a calibrated model.

        Arguments as in `distance`, and how values travel between owners and ghosts.
        """
        alone = self.distance(species, pairs, species_all, threads)
        return alone if self.limits is None else np.maximum(shared(alone, pairs, halo), self.limits.far(alone))

    def with_result(self, measure: Floats, species: Ints, result: Result) -> Floats:
        """The measure that takes forces and charges into account, shape (n,); nothing new without calibration.

        Args:
            measure: of the surroundings, shape (n,).
            species: element index, shape (n,).
            result: of this structure.
        """
        if self.limits is None:
            return measure
        if result.forces is not None:
            measure = measure * np.sqrt(1.0 + (result.forces**2).sum(axis=1) / STEEP**2)
        return np.maximum(measure, self.limits.beyond(species, result.charges))


def limits_of(model: Model) -> Limits | None:
    """The limits that a model was calibrated to, or None."""
    record = model.training.get("extrapolation")
    return None if record is None else Limits.read(record, model.species)


def largest_measure(model: Model) -> float:
    """Measure beyond which atoms extrapolate for a model."""
    if (limits := limits_of(model)) is not None:
        return limits.threshold
    return LARGEST_IMPORTED if "imported" in model.training else LARGEST_MEASURE


def shared(distance: Floats, pairs: Pairs, halo: Halo = SERIAL) -> Floats:
    """sqrt(sum_j exp(-r_ij^2 / a^2) d_j^2) with j = i in the sum, shape (n,)."""
    squares = np.asarray(halo.forward(distance**2))
    weights = np.exp(-(pairs.vectors**2).sum(axis=1) / REACH**2)
    others = np.bincount(pairs.centre, weights * squares[pairs.neighbour], minlength=len(distance))
    out: Floats = np.sqrt(distance**2 + others)
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
