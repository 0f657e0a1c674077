"""Errors of a model on labelled frames, by quantity, total charge and field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kqeq_md.errors import KqeqError
from kqeq_md.model import Model
from kqeq_md.neighbours import find_pairs
from kqeq_md.potential import LocalPart, Potential
from kqeq_md.structure import Floats, Result
from kqeq_md.train.data import Frame
from kqeq_md.train.design import Progress

QUANTITIES = {"energy_per_atom": "eV", "forces": "eV/A", "charges": "e", "dipole": "e A"}

Errors = Mapping[str, Floats]
"""Differences prediction - label of one frame, per quantity; only what is labelled."""


def evaluate(model: Model, frames: Sequence[Frame], progress: Progress) -> dict[str, Any]:
    """RMSE and MAE of energy per atom (eV), forces (eV/A), charges (e) and dipole (e A), as JSON.

    Forces and dipoles count per component, charges per atom, energies per frame. Groups: `by_total_charge` ("-1",
    "0", ...), `by_field` ("with", "without").
    """
    potential = Potential(model)
    errors = []
    for index, frame in enumerate(progress(frames, "evaluating")):
        try:
            errors.append(_errors(frame, potential.compute(frame.structure)))
        except KqeqError as error:
            raise KqeqError(f"frame {index}: {error}") from None
    return error_table(frames, errors)


def evaluate_local_part(model: Model, frames: Sequence[Frame]) -> dict[str, Any]:
    """The same table for the short range alone, as if there were no charges."""
    potential, errors = Potential(model), []
    for frame in frames:
        structure = frame.structure
        species = potential.species_index(structure.numbers)
        pairs = find_pairs(structure, model.cutoff)
        local = LocalPart(model, potential.descriptor, species, pairs)
        gradient = pairs.scatter(local.gradient(np.zeros(len(structure))), len(structure))
        errors.append(_energy_and_force_errors(frame, float(local.energies.sum()), -gradient))
    return error_table(frames, errors)


def error_table(frames: Sequence[Frame], errors: Sequence[Errors]) -> dict[str, Any]:
    """Summary of all frames and of its groups."""
    table = {"n_frames": len(frames), **_summary(errors)}
    table["by_total_charge"] = _groups(frames, errors, lambda frame: f"{frame.structure.charge:g}")
    table["by_field"] = _groups(frames, errors, lambda frame: "with" if frame.structure.field.any() else "without")
    return table


def point_charge_floor(frames: Sequence[Frame]) -> float | None:
    """rms of F.(mu - sum_i q_i R_i) / N over frames in a field, eV/atom; None where no frame has the labels.

    Labels with atomic dipoles leave this error in the energy of any model that has charges alone.
    """
    rests = [
        float(frame.structure.field @ (frame.dipole - frame.charges @ frame.structure.positions)) / len(frame.structure)
        for frame in frames
        if frame.dipole is not None and frame.charges is not None and frame.structure.field.any()
    ]
    return float(np.sqrt(np.mean(np.square(rests)))) if rests else None


def _energy_and_force_errors(frame: Frame, energy: float, forces: Floats) -> dict[str, Floats]:
    out = {}
    if frame.energy is not None:
        out["energy_per_atom"] = np.array([(energy - frame.energy) / len(frame.structure)])
    if frame.forces is not None:
        out["forces"] = (forces - frame.forces).ravel()
    return out


def _errors(frame: Frame, result: Result) -> Errors:
    assert result.forces is not None
    out = _energy_and_force_errors(frame, result.energy, result.forces)
    if frame.charges is not None:
        out["charges"] = result.charges - frame.charges
    if frame.dipole is not None and result.dipole is not None:
        out["dipole"] = result.dipole - frame.dipole
    return out


def _summary(errors: Sequence[Errors]) -> dict[str, dict[str, float]]:
    out = {}
    for quantity in QUANTITIES:
        parts = [e[quantity] for e in errors if quantity in e]
        if parts:
            flat = np.concatenate(parts)
            out[quantity] = {"rmse": float(np.sqrt(np.mean(flat**2))), "mae": float(np.mean(np.abs(flat)))}
    return out


def _groups(frames: Sequence[Frame], errors: Sequence[Errors], key: Callable[[Frame], str]) -> dict[str, Any]:
    members: dict[str, list[Errors]] = {}
    for frame, error in zip(frames, errors, strict=True):
        members.setdefault(key(frame), []).append(error)
    return {name: {"n_frames": len(group), **_summary(group)} for name, group in sorted(members.items())}


def format_table(table: Mapping[str, Any]) -> str:
    """The table as text: RMSE (MAE) in meV, meV/A, me, me A; one line per group."""
    head = ["", "frames", *(f"{name} / m{unit}" for name, unit in QUANTITIES.items())]
    rows = [("all", table)]
    rows += [(f"Q = {charge}", group) for charge, group in table["by_total_charge"].items()]
    rows += [(f"{name} field", group) for name, group in table["by_field"].items()]
    lines = ["{:<15}{:>7}{:>24}{:>22}{:>18}{:>18}".format(*head)]
    for name, group in rows:
        cells = [
            f"{1e3 * group[q]['rmse']:.2f} ({1e3 * group[q]['mae']:.2f})" if q in group else "-" for q in QUANTITIES
        ]
        lines.append("{:<15}{:>7}{:>24}{:>22}{:>18}{:>18}".format(name, group["n_frames"], *cells))
    return "\n".join(lines)
