"""Pair terms of imported Gaussian approximation potentials: a sum of Gaussians for each two elements.

    E = sum_(pairs) f_c(r) sum_m w_m exp(-(r - r_m)^2 / 2 theta^2)

with f_c from 1 (cutoff - cutoff_width) to 0 (cutoff) by half a period of a cosine. The Gaussians are tabulated; f_c,
whose curvature jumps, is not.

Reference: Bartok and Csanyi, Int. J. Quantum Chem. 115, 1051 (2015), doi:10.1002/qua.24927.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kqeq_md.errors import ModelError
from kqeq_md.machine.jit import compiled
from kqeq_md.neighbours.half_list import Pairs
from kqeq_md.structure import Floats

Ints = NDArray[np.int64]

KNOTS_PER_LENGTH = 50
"""Knots per theta: quintic Hermite interpolation of a Gaussian is then good to 1e-14 in energy, 4e-12 / theta in slope.

More would let the rounding of a sum of large terms of both signs, divided by the spacing, into the slope.
"""


@dataclass(frozen=True, eq=False)
class PairTerm:
    """A sum of Gaussians in the distance of two elements.

    Attributes:
        species: indices of the two elements.
        points: r_m, Angstrom, shape (m,).
        weights: w_m, eV, shape (m,).
        length: theta, Angstrom.
        cutoff: where f_c ends, Angstrom.
        cutoff_width: over which distance f_c falls, Angstrom.

    Raises:
        ModelError: arrays of wrong shape or not finite; lengths that are not positive; a width beyond the cutoff.
    """

    species: tuple[int, int]
    points: Floats
    weights: Floats
    length: float
    cutoff: float
    cutoff_width: float

    def __post_init__(self) -> None:
        for name in ("points", "weights"):
            array = getattr(self, name)
            if array.shape != (len(self.points),) or not np.isfinite(array).all():
                raise ModelError(f"`{name}` of a pair term must be {len(self.points)} finite numbers, got {array}")
        for name, low, high in (("length", 0.01, 100.0), ("cutoff", 0.01, 100.0), ("cutoff_width", 1e-3, 100.0)):
            if not low <= getattr(self, name) <= high:
                raise ModelError(
                    f"`{name}` of a pair term must lie between {low:g} and {high:g}, got {getattr(self, name)}"
                )
        if self.cutoff_width > self.cutoff:
            raise ModelError(
                f"`cutoff_width` of a pair term must not exceed the cutoff {self.cutoff}, got {self.cutoff_width}"
            )


@dataclass(frozen=True, eq=False)
class PairTables:
    """All pair terms of a model as tables, those of two elements one after the other.

    Attributes:
        first: the terms of elements a and b are first[a, b]:last[a, b], shape (n_species, n_species).
        last: see `first`.
        cutoff: of each term, Angstrom, shape (n_terms,).
        cutoff_width: of each term, Angstrom, shape (n_terms,).
        spacing: distance of two knots of each term, Angstrom, shape (n_terms,).
        begin: row of the first knot of each term in `values`, shape (n_terms,).
        values: the sum of Gaussians at the knots, its first derivative times the spacing and its second times the
            square of it, eV, shape (n_knots, 3).
    """

    first: Ints
    last: Ints
    cutoff: Floats
    cutoff_width: Floats
    spacing: Floats
    begin: Ints
    values: Floats


def pair_tables(terms: Sequence[PairTerm], n_species: int) -> PairTables:
    """Tabulate the terms of a model of `n_species` elements."""
    first = np.zeros((n_species, n_species), dtype=np.int64)
    last = np.zeros((n_species, n_species), dtype=np.int64)
    ordered: list[PairTerm] = []
    for a in range(n_species):
        for b in range(a + 1):
            first[a, b] = first[b, a] = len(ordered)
            ordered += [term for term in terms if sorted(term.species) == [b, a]]
            last[a, b] = last[b, a] = len(ordered)
    tables = [_table(term) for term in ordered] or [np.empty((0, 3))]
    return PairTables(
        first=first,
        last=last,
        cutoff=np.array([term.cutoff for term in ordered], dtype=np.float64),
        cutoff_width=np.array([term.cutoff_width for term in ordered], dtype=np.float64),
        spacing=np.array([_spacing(term) for term in ordered], dtype=np.float64),
        begin=np.cumsum([0, *(len(table) for table in tables)])[:-1].astype(np.int64),
        values=np.concatenate(tables),
    )


def _spacing(term: PairTerm) -> float:
    return term.length / KNOTS_PER_LENGTH


def _table(term: PairTerm) -> Floats:
    """Value, slope and curvature of the Gaussians from r = 0 to beyond the cutoff, shape (n_knots, 3)."""
    spacing = _spacing(term)
    r = spacing * np.arange(int(np.ceil(term.cutoff / spacing)) + 2)
    x = (r[:, None] - term.points) / term.length
    gaussians, step = np.exp(-0.5 * x**2), spacing / term.length
    slopes, curvatures = -step * x * gaussians, step**2 * (x**2 - 1.0) * gaussians
    return np.stack([gaussians @ term.weights, slopes @ term.weights, curvatures @ term.weights], axis=1)


def add_pair_terms(pairs: Pairs, species_all: Ints, tables: PairTables, energies: Floats, gradient: Floats) -> None:
    """Add the energy of each centre, half of that of its pairs, and the gradient of the total in the pair vectors.

    Args:
        pairs: directed pairs.
        species_all: element index of owned atoms and ghosts, shape (n_all,).
        tables: of `pair_tables`.
        energies: eV, shape (n_local,).
        gradient: eV/Angstrom, shape (n_pairs, 3).
    """
    t = tables
    sum_pairs(
        pairs.first, pairs.neighbour, pairs.vectors, species_all, t.first, t.last,
        t.cutoff, t.cutoff_width, t.spacing, t.begin, t.values, energies, gradient,
    )  # fmt: skip


@compiled
def sum_pairs(
    first: Ints, neighbour: Ints, vectors: Floats, species: Ints, first_term: Ints, last_term: Ints,
    cutoff: Floats, cutoff_width: Floats, spacing: Floats, begin: Ints, values: Floats,
    energies: Floats, gradient: Floats,
) -> None:  # fmt: skip
    """Add half of f_c(r) g(r) of every directed pair to its centre, and half of its slope along the pair vector."""
    for i in range(len(first) - 1):
        for pair in range(first[i], first[i + 1]):
            a, b = species[i], species[neighbour[pair]]
            x, y, z = vectors[pair]
            r = np.sqrt(x * x + y * y + z * z)
            slope = 0.0
            for term in range(first_term[a, b], last_term[a, b]):
                if r < cutoff[term]:
                    g, dg = quintic_hermite(values[begin[term] :], r / spacing[term])
                    s, ds = cosine(r, cutoff[term], cutoff_width[term])
                    energies[i] += 0.5 * s * g
                    slope += 0.5 * (s * dg / spacing[term] + ds * g)
            gradient[pair, 0] += slope * x / r
            gradient[pair, 1] += slope * y / r
            gradient[pair, 2] += slope * z / r


@compiled
def quintic_hermite(table: Floats, u: float) -> tuple[float, float]:
    """Value and derivative (per spacing) at u = r / spacing from value, slope and curvature at both knots."""
    k = int(u)
    t = u - k
    value, slope, half = table[k, 0], table[k, 1], 0.5 * table[k, 2]
    # what the parabola of the left knot misses at the right one, in value, slope and curvature
    d = table[k + 1, 0] - value - slope - half
    e = table[k + 1, 1] - slope - 2.0 * half
    f = 0.5 * table[k + 1, 2] - half
    c3, c4, c5 = 10.0 * d - 4.0 * e + f, 7.0 * e - 15.0 * d - 2.0 * f, 6.0 * d - 3.0 * e + f
    return (
        value + t * (slope + t * (half + t * (c3 + t * (c4 + t * c5)))),
        slope + t * (2.0 * half + t * (3.0 * c3 + t * (4.0 * c4 + t * 5.0 * c5))),
    )


@compiled
def cosine(r: float, cutoff: float, width: float) -> tuple[float, float]:
    """f_c and its derivative at r < cutoff."""
    inside = cutoff - width
    if r <= inside:
        return 1.0, 0.0
    angle = np.pi * (r - inside) / width
    return 0.5 * (1.0 + np.cos(angle)), -0.5 * np.pi / width * np.sin(angle)
