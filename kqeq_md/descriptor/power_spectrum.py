"""The SOAP power spectrum of groups of atoms and its reverse.

    p_l,ab = sqrt(w_ab / (2 l + 1)) sum_m c_lm,a c_lm,b,   a <= b, w_ab = 2 off the diagonal, 1 on it

of the density c (`density.py`), so that p_i . p_j equals the sum over all (a, b). Kernels see it normalised. No
gradient of a descriptor is ever stored: the reverse carries dE/dp back to dE/d(pair vectors). As everywhere in this
folder the last axis of an array runs over the atoms of a group.

Reference: Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115 (2013), doi:10.1103/PhysRevB.87.184115.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kqeq_md.descriptor.density import Ints, expand_density, expand_density_vjp
from kqeq_md.descriptor.harmonics import normalisation
from kqeq_md.descriptor.radial import SoapParameters, radial_table
from kqeq_md.machine.jit import compiled
from kqeq_md.neighbours.half_list import Pairs
from kqeq_md.structure import Floats

BLOCK = 64
"""Atoms side by side: enough for vector instructions, few enough for their density to stay in the second cache."""


@dataclass(frozen=True)
class Descriptor:
    """Parameters and tables of the power spectrum for `n_species` elements."""

    parameters: SoapParameters
    n_species: int
    _expansion: tuple[int, float, float, float, Floats, Floats, Floats] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        p, radial = self.parameters, radial_table(self.parameters)
        tables = (
            radial.values.reshape(len(radial.values), 2, -1),
            p.central_weight * radial.at_zero,
            normalisation(p.l_max),
        )
        expansion = (self.n_species, p.cutoff, radial.start, radial.spacing, *tables)
        object.__setattr__(self, "_expansion", expansion)

    @property
    def size(self) -> int:
        """Length of the power spectrum of one atom."""
        return self.size_for(self.parameters, self.n_species)

    @staticmethod
    def size_for(parameters: SoapParameters, n_species: int) -> int:
        """(l_max + 1) a (a + 1) / 2 with a = n_species n_max channels."""
        channels = n_species * parameters.n_max
        return (parameters.l_max + 1) * channels * (channels + 1) // 2

    def density(self, rows: Ints, pairs: Pairs, species_all: Ints) -> list[Floats]:
        """c_lm,a of the atoms `rows`, `BLOCK` at a time, shapes (lm, a, lanes).

        Args:
            rows: the centres, shape (n,).
            pairs: neighbours within the cutoff at least.
            species_all: element index of owned atoms and ghosts, shape (n_all,).
        """
        lists = (pairs.first, pairs.neighbour, pairs.vectors, species_all)
        return [expand_density(block, *lists, *self._expansion) for block in blocks_of(rows)]

    def spectrum(self, density: Sequence[Floats]) -> tuple[Floats, Floats]:
        """p / |p|, shape (size, n), and |p|, shape (n,); both zero where there is no density at all."""
        p, begin = np.empty((self.size, sum(c.shape[2] for c in density))), 0
        for c in density:
            contract(c, self.parameters.l_max + 1, begin, p)
            begin += c.shape[2]
        return p, normalise(p)

    def spectrum_vjp(
        self, rows: Ints, pairs: Pairs, species_all: Ints, density: Sequence[Floats], unit: Floats, length: Floats,
        grad_unit: Floats, out: Floats,
    ) -> None:  # fmt: skip
        """Add dE/d(pair vectors) of the pairs of `rows` to `out`, shape (n_pairs, 3).

        Args:
            rows, pairs, species_all: as in `density`.
            density, unit, length: what `density` and `spectrum` gave.
            grad_unit: dE/d(p / |p|), shape (size, n); spoilt.
        """
        normalise_vjp(unit, length, grad_unit)
        lists, begin = (pairs.first, pairs.neighbour, pairs.vectors, species_all), 0
        for block, c in zip(blocks_of(rows), density, strict=True):
            grad_c = contract_vjp(c, self.parameters.l_max + 1, begin, grad_unit)
            expand_density_vjp(block, *lists, *self._expansion, grad_c, out)
            begin += len(block)


def blocks_of(rows: Ints) -> list[Ints]:
    """The atoms in their order, `BLOCK` at a time."""
    return [rows[begin : begin + BLOCK] for begin in range(0, len(rows), BLOCK)]


@compiled
def contract(c: Floats, n_l: int, begin: int, p: Floats) -> None:
    """p_l,ab = sqrt(w_ab / (2 l + 1)) sum_m c_lm,a c_lm,b over a <= b, into the columns of p from `begin` on."""
    channels, lanes, first = c.shape[1], np.uint64(c.shape[2]), np.uint64(begin)  # unsigned: no negative indices
    d = 0
    for degree in range(n_l):
        low, high = degree * degree, (degree + 1) * (degree + 1)
        for a in range(channels):
            for b in range(a, channels):
                weight = np.sqrt((1.0 if a == b else 2.0) / (2 * degree + 1))
                for k in range(lanes):
                    p[d, first + k] = weight * c[low, a, k] * c[low, b, k]
                for lm in range(low + 1, high, 2):
                    for k in range(lanes):
                        p[d, first + k] += weight * (c[lm, a, k] * c[lm, b, k] + c[lm + 1, a, k] * c[lm + 1, b, k])
                d += 1


@compiled
def contract_vjp(c: Floats, n_l: int, begin: int, grad_p: Floats) -> Floats:
    """dE/dc, shape of c, from the columns of dE/dp from `begin` on.

    dE/dc_lm,a = sum_b M_l,ab c_lm,b with M the symmetric matrix of dE/dp, its diagonal twice.
    """
    channels, lanes, first = c.shape[1], np.uint64(c.shape[2]), np.uint64(begin)  # unsigned: no negative indices
    matrix, out = np.empty((channels, channels, c.shape[2])), np.empty(c.shape)
    d = 0
    for degree in range(n_l):
        for a in range(channels):
            for b in range(a, channels):
                weight = np.sqrt((4.0 if a == b else 2.0) / (2 * degree + 1))
                for k in range(lanes):
                    matrix[a, b, k] = weight * grad_p[d, first + k]
                for k in range(lanes):
                    matrix[b, a, k] = matrix[a, b, k]
                d += 1
        for lm in range(degree * degree, (degree + 1) * (degree + 1)):
            for a in range(channels):
                for k in range(lanes):
                    out[lm, a, k] = 0.0 if channels % 2 == 0 else matrix[a, channels - 1, k] * c[lm, channels - 1, k]
                for b in range(0, channels - 1, 2):
                    for k in range(lanes):
                        out[lm, a, k] += matrix[a, b, k] * c[lm, b, k] + matrix[a, b + 1, k] * c[lm, b + 1, k]
    return out


@compiled
def normalise(p: Floats) -> Floats:
    """Divide p, shape (size, lanes), by its length, which is returned, shape (lanes,); zero stays zero."""
    lanes = p.shape[1]
    length, inverse = np.zeros(lanes), np.zeros(lanes)
    for d in range(len(p)):
        for k in range(lanes):
            length[k] += p[d, k] * p[d, k]
    for k in range(lanes):
        length[k] = np.sqrt(length[k])
        inverse[k] = 1.0 / length[k] if length[k] > 0.0 else 0.0
    for d in range(len(p)):
        for k in range(lanes):
            p[d, k] *= inverse[k]
    return length


@compiled
def normalise_vjp(unit: Floats, length: Floats, grad: Floats) -> None:
    """Turn dE/d(p / |p|), shape (size, lanes), into dE/dp: the part along p falls away."""
    lanes = len(length)
    along, inverse = np.zeros(lanes), np.zeros(lanes)
    for d in range(len(unit)):
        for k in range(lanes):
            along[k] += unit[d, k] * grad[d, k]
    for k in range(lanes):
        inverse[k] = 1.0 / length[k] if length[k] > 0.0 else 0.0
    for d in range(len(unit)):
        for k in range(lanes):
            grad[d, k] = (grad[d, k] - along[k] * unit[d, k]) * inverse[k]
