"""What a model says of labelled frames: computed once, for error tables and for plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq_md.charges.charge_model import CONNECTIVITY
from kqeq_md.errors import KqeqError
from kqeq_md.kernel import SparseKernel
from kqeq_md.model import NO_CHARGES, Model, SoapTerm
from kqeq_md.potential import Potential
from kqeq_md.response import Response, response
from kqeq_md.structure import Floats, Result, Structure
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.design import Progress
from kqeq_md.train.fit.molecules import for_each, take_fragments

QUANTITIES = {
    "energy_per_atom": "eV", "forces": "eV/A", "charges": "e", "dipole": "e A", "polarizability": "e^2 A^2/eV",
    "born_charges": "e", "stress": "eV/A^3",
}  # fmt: skip
"""Everything that is compared, with its unit, in the order of tables and plots."""

TOGETHER = 16
"""Frames between two steps of the progress bar."""

PER_ATOM = {"forces": 3, "charges": 1}
"""Quantities that belong to one atom, with how many numbers each atom has."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """One frame's predictions beside its labels.

    Attributes:
        predicted, labels: by quantity, flat arrays of one length, in the units of QUANTITIES; only what is labelled.
        reference_residual: mean square of `Result.reference_residual`, e^2; None without learned reference charges.
        mean_polarizability: trace / 3, e^2 Angstrom^2/eV; None where it was not asked for.
    """

    predicted: dict[str, Floats]
    labels: dict[str, Floats]
    reference_residual: float | None = None
    mean_polarizability: float | None = None

    def error(self, quantity: str) -> Floats:
        """Prediction - label, flat."""
        return self.predicted[quantity] - self.labels[quantity]


def predict(
    model: Model,
    frames: Sequence[Frame],
    progress: Progress,
    charges: str | None = None,
    fragments: bool = False,
    with_response: bool = False,
    in_field: bool = True,
) -> list[Prediction]:
    """Energies, forces, charges, ... of a model for every label that a frame has.

    Args:
        model: with or without charges; without them it sees neither total charges nor fields, and charges and dipoles
            are not compared.
        frames: with their labels.
        progress: shown over the frames.
        charges: as in `Potential`.
        fragments: whether molecules keep their charges: the frames' own, else found in each frame by connectivity.
        with_response: compute polarizabilities also where there is no label.
        in_field: let the model feel the frames' fields. The labels stay those in the field.

    Raises:
        KqeqError: naming the frame.
    """
    potential = Potential(model, charges=charges, fragments=CONNECTIVITY if fragments else None, threads=1)

    def of(own: Potential, frame: Frame) -> Prediction:
        try:
            if fragments:
                take_fragments(own, frame)
            shown = seen(frame.structure, own.has_charges, in_field)
            result = own.compute(shown)
            labelled = frame.polarizability is not None or frame.born_charges is not None
            answer = response(own, shown) if own.has_charges and (labelled or with_response) else None
        except KqeqError as error:
            raise KqeqError(f"{frame.place}: {error}") from None
        return _prediction(frame, result, answer, own.has_charges, with_response)

    parts = [frames[begin : begin + TOGETHER] for begin in range(0, len(frames), TOGETHER)]
    return [found for part in progress(parts, "evaluating") for found in for_each(potential, part, of)]


def seen(structure: Structure, has_charges: bool, in_field: bool) -> Structure:
    """What a model sees of a structure: one without charges neither its total charge nor its field."""
    if has_charges and in_field:
        return structure
    charge = structure.charge if has_charges else 0.0
    return Structure(structure.numbers, structure.positions, structure.cell, structure.pbc, charge)


def without_charges(model: Model) -> Model:
    """The short range of a model alone, as a potential without charges."""
    column = model.energy_column

    def alone(weights: tuple[Floats, ...]) -> tuple[Floats, ...]:
        return tuple(w[:, column : column + 1] for w in weights)

    def term_alone(term: SoapTerm) -> SoapTerm:
        low = term.low_rank
        low = None if low is None else SparseKernel(low.points, alone(low.weights))
        return replace(term, weights=alone(term.weights), low_rank=low)

    return replace(model, terms=tuple(map(term_alone, model.terms)), charges=NO_CHARGES, reference={}, fragment={})


def _prediction(
    frame: Frame, result: Result, answer: Response | None, has_charges: bool, with_response: bool
) -> Prediction:
    pairs = {name: (p, label) for name, p, label in _compared(frame, result, answer, has_charges)}
    residual, alpha = result.reference_residual, None
    if answer is not None and with_response:
        alpha = float(np.trace(answer.polarizability)) / 3.0
    return Prediction(
        {name: np.ravel(p) for name, (p, _) in pairs.items()},
        {name: np.ravel(label) for name, (_, label) in pairs.items()},
        None if residual is None else float(np.mean(residual**2)),
        alpha,
    )


def _compared(
    frame: Frame, result: Result, answer: Response | None, has_charges: bool
) -> Iterator[tuple[str, Floats, Floats]]:
    """Name, prediction and label of everything that both sides have."""
    atoms = len(frame.structure)
    stress = None if result.virial is None or not frame.structure.periodic else -result.virial / frame.structure.volume
    candidates: tuple[tuple[str, Floats | None, Floats | None], ...] = (
        ("energy_per_atom", np.array(result.energy / atoms), None if frame.energy is None else
         np.array(frame.energy / atoms)),
        ("forces", result.forces, frame.forces),
        ("charges", result.charges if has_charges else None, frame.charges),
        ("dipole", result.dipole if has_charges else None, frame.dipole),
        ("polarizability", None if answer is None else answer.polarizability, frame.polarizability),
        ("born_charges", None if answer is None else answer.born_charges, frame.born_charges),
        ("stress", stress, frame.stress),
    )  # fmt: skip
    for name, predicted, label in candidates:
        if predicted is not None and label is not None:
            yield name, predicted, label
