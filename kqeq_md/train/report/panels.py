"""Which points stand in which panel of a parity plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kqeq_md.model import Model
from kqeq_md.structure import Floats
from kqeq_md.train.data import Frame
from kqeq_md.train.report.errors import WITH, charge_of, field_of
from kqeq_md.train.report.predictions import Prediction

MOST_PANELS = 8
"""In one plot; the smallest of more groups share the last panel."""


@dataclass(frozen=True, eq=False)
class Points:
    """Labels and predictions of one panel, flat, and which of them are of frames in a field."""

    title: str
    label: Floats
    predicted: Floats
    in_field: np.ndarray[tuple[int], np.dtype[np.bool_]]

    @property
    def error(self) -> Floats:
        """Prediction - label."""
        return self.predicted - self.label


def panels_by_charge(
    model: Model, quantity: str, frames: Sequence[Frame], predictions: Sequence[Prediction]
) -> list[Points]:
    """One panel per total charge, from the lowest to the highest."""
    found = _panels(model, quantity, frames, predictions, charge_of)
    found = dict(sorted(found.items(), key=lambda entry: float(entry[0])))
    return _at_most({f"Q = {_signed(name)}": points for name, points in found.items()})


def _signed(charge: str) -> str:
    return f"{float(charge):+g} e".replace("-", "\N{MINUS SIGN}") if float(charge) else "0"


def panels_by_group(
    model: Model, quantity: str, frames: Sequence[Frame], predictions: Sequence[Prediction]
) -> list[Points]:
    """One panel per group; none if all frames belong to the same."""
    if len({frame.group for frame in frames}) < 2:
        return []
    found = _panels(model, quantity, frames, predictions, lambda frame: frame.group or "(no name)")
    return _at_most(dict(sorted(found.items())))


def _panels(
    model: Model,
    quantity: str,
    frames: Sequence[Frame],
    predictions: Sequence[Prediction],
    key: Callable[[Frame], str],
) -> dict[str, list[tuple[Floats, Floats, bool]]]:
    found: dict[str, list[tuple[Floats, Floats, bool]]] = {}
    for frame, prediction in zip(frames, predictions, strict=True):
        if quantity in prediction.labels:
            shift = origin(model, quantity, frame)
            entry = (prediction.labels[quantity] - shift, prediction.predicted[quantity] - shift)
            found.setdefault(key(frame), []).append((*entry, field_of(frame) == WITH))
    return found


def origin(model: Model, quantity: str, frame: Frame) -> Floats | float:
    """What is subtracted from labels and predictions, so that a plot shows differences that matter.

    Energies per atom lose the model's constants of their elements; dipoles of ions are taken about the centre of the
    atoms. The errors stay the same.
    """
    structure = frame.structure
    if quantity == "energy_per_atom":
        of_element = dict(zip(model.numbers, model.atom_energy, strict=True))
        return float(np.mean([of_element[int(z)] for z in structure.numbers]))
    if quantity == "dipole":
        centre: Floats = structure.positions.mean(axis=0)
        return structure.charge * centre
    return 0.0


def _at_most(found: dict[str, list[tuple[Floats, Floats, bool]]]) -> list[Points]:
    """The panels, of which there are no more than MOST_PANELS."""
    if len(found) > MOST_PANELS:
        large = sorted(found, key=lambda name: -len(found[name]))[: MOST_PANELS - 1]
        rest = [entry for name, entries in found.items() if name not in large for entry in entries]
        found = {name: entries for name, entries in found.items() if name in large} | {"all others": rest}
    return [_points(title, entries) for title, entries in found.items()]


def _points(title: str, entries: Sequence[tuple[Floats, Floats, bool]]) -> Points:
    labels, predicted, in_field = zip(*entries, strict=True)
    repeated = np.repeat(np.array(in_field), [len(label) for label in labels])
    return Points(title, np.concatenate(labels), np.concatenate(predicted), repeated)
