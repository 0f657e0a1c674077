"""What is learned, as one vector x, and the model that it stands for.

    x = (chi: v, c | y: v, c | E_short: v, c | physical parameters)

Each kernel column is K U v plus a constant c per element; y, the learned reference charge, is there for split charges
alone. The constants of E_short are counted from `start.atom_energy`, physical parameters as in `physical`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kqeq_md.model import Model
from kqeq_md.structure import Floats
from kqeq_md.train.design import Basis
from kqeq_md.train.physical import Parameter, with_physical

CONSTANTS = ("electronegativity_offset", "atom_energy", "reference_charge")
"""Of each column of the weights, what a model adds to its kernel per element."""

CHI, SHORT, REFERENCE = 0, 1, 2
"""Columns of the weights of a model."""


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
