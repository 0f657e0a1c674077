"""What is learned, as one vector x, and the model that it stands for.

    x = (chi: v, c | y: v, c | E_short: v, c | physical parameters)

Each kernel column is K U v plus a constant c per element; y, the learned reference charge, is there for split charges
alone. The constants of E_short are counted from `start.atom_energy`, physical parameters as in `physical`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq_md.model import Model
from kqeq_md.structure import Floats
from kqeq_md.train.config import Fit
from kqeq_md.train.fit.design import Basis
from kqeq_md.train.fit.physical import Parameter, with_physical

CONSTANTS = ("electronegativity_offset", "atom_energy", "reference_charge")
"""Of each column of the weights, what a model adds to its kernel per element."""

CHI, SHORT, REFERENCE = 0, 1, 2
"""Columns of the weights of a model."""


WIDE = 100.0
"""Prior of per-element constants (eV, eV/e): wide enough to leave them free, finite so that a fit always exists."""

GIVEN = 1e-6
"""Prior of the constants of the short range where atom energies are given, eV."""


@dataclass(frozen=True)
class Unknowns:
    """Where everything stands in x.

    Attributes:
        start: the hyperparameters, with weights of zero.
        basis: sparse points and whitening.
        parameters: physical parameters that are fitted.
    """

    start: Model
    basis: Basis
    parameters: Sequence[Parameter]

    @property
    def width(self) -> int:
        """Unknowns of one column of the weights."""
        return self.basis.size + len(self.start.species)

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns of the weights in the order of x: those that make the charges first."""
        return (CHI, REFERENCE, SHORT) if self.start.learned_reference else (CHI, SHORT)

    @property
    def charged(self) -> int:
        """Unknowns that the charges depend on, physical parameters aside."""
        return self.width * (len(self.columns) - 1)

    @property
    def size(self) -> int:
        """All unknowns."""
        return self.width * len(self.columns) + len(self.parameters)

    @property
    def physical(self) -> slice:
        """Where physical parameters stand."""
        return slice(self.size - len(self.parameters), self.size)

    @property
    def without_points(self) -> Model:
        """`start` with kernels that take no time."""
        (term,) = self.start.terms
        no_points = tuple(points[:0] for points in term.sparse_points)
        no_weights = tuple(weights[:0] for weights in term.weights)
        return replace(self.start, terms=(replace(term, sparse_points=no_points, weights=no_weights),))

    def of(self, column: int) -> slice:
        """Where a column of the weights stands."""
        begin = self.columns.index(column) * self.width
        return slice(begin, begin + self.width)

    def model(self, x: Floats) -> Model:
        """`start` with everything that x says."""
        model = with_physical(self.start, self.parameters, x[self.physical])
        for column in self.columns:
            model = self.with_column(model, column, x[self.of(column)])
        return model

    def with_column(self, model: Model, column: int, solution: Floats) -> Model:
        """`model` with one column of its weights, and its constants on top of those of `start`."""
        weights = [w.copy() for w in model.terms[0].weights]
        for w, learned in zip(weights, self.basis.weights(solution[: self.basis.size]), strict=True):
            w[:, column] = learned
        name = CONSTANTS[column]
        constants = {name: getattr(self.start, name) + solution[self.basis.size :]}
        return replace(model.with_weights(weights), **constants)


def unknowns_of(start: Model, basis: Basis, parameters: Sequence[Parameter]) -> Unknowns:
    """The unknowns of a model with these sparse points, and weights of zero."""
    columns = start.terms[0].weights[0].shape[1]
    weights = tuple(np.zeros((len(points), columns)) for points in basis.points)
    term = replace(start.terms[0], sparse_points=basis.points, weights=weights)
    return Unknowns(replace(start, terms=(term,)), basis, parameters)


def prior_of(unknowns: Unknowns, fit: Fit, factors: tuple[float, ...], given_atoms: bool) -> Floats:
    """Standard deviation of every unknown, shape (unknowns.size,)."""
    width = {CHI: fit.prior_electronegativity, REFERENCE: fit.prior_reference_charge, SHORT: fit.prior_short_range}
    out = np.full(unknowns.size, fit.prior_physical)
    for column, factor in zip(unknowns.columns, factors, strict=True):
        own = unknowns.of(column)
        out[own] = factor * width[column]
        out[own.stop - len(unknowns.start.species) : own.stop] = GIVEN if column == SHORT and given_atoms else WIDE
    return out
