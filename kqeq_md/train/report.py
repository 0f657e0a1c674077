"""Errors of a model on labelled frames, by quantity, total charge and field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kqeq_md.charges.charge_model import CONNECTIVITY
from kqeq_md.errors import KqeqError
from kqeq_md.local_part import LocalKernels, LocalPart
from kqeq_md.model import Model
from kqeq_md.neighbours import find_pairs
from kqeq_md.potential import Potential
from kqeq_md.response import Response, response
from kqeq_md.structure import Floats, Result
from kqeq_md.train.data import Frame
from kqeq_md.train.design import Progress
from kqeq_md.train.molecules import take_fragments
from kqeq_md.units import COULOMB_CONSTANT

QUANTITIES = {
    "energy_per_atom": "eV", "forces": "eV/A", "charges": "e", "dipole": "e A", "polarizability": "e^2 A^2/eV",
    "born_charges": "e",
}  # fmt: skip

Errors = Mapping[str, Floats]
"""Differences prediction - label of one frame, per quantity; only what is labelled."""


def evaluate(
    model: Model,
    frames: Sequence[Frame],
    progress: Progress,
    charges: str | None = None,
    fragments: bool = False,
    with_response: bool = False,
) -> dict[str, Any]:
    """RMSE and MAE of energy per atom (eV), forces (eV/A), charges (e), dipole (e A), polarizability (e^2 A^2/eV) and
    Born charges (e), as JSON.

    Charges count per atom, energies per frame, all else per component. Groups: `by_total_charge` ("-1", "0", ...),
    `by_field` ("with", "without"). Beside them, where they exist, `reference_charge_residual` (e): what learned
    reference charges miss of their sums, rms over frames; and `mean_polarizability` (e^2 A^2/eV) with
    `mean_polarizability_volume` (A^3): trace / 3, mean over frames.

    Args:
        model: to be measured.
        frames: with their labels.
        progress: shown over the frames.
        charges: as in `Potential`.
        fragments: whether molecules keep their charges: the frames' own, else found in each frame by connectivity.
        with_response: compute polarizabilities also where there is no label.

    Raises:
        KqeqError: naming the frame.
    """
    potential = Potential(model, charges=charges, fragments=CONNECTIVITY if fragments else None)
    in_fragments = fragments or (potential.has_charges and potential.charge_model.name == "fragments")
    errors, residuals, polarizabilities = [], [], []
    for frame in progress(frames, "evaluating"):
        try:
            if in_fragments:
                take_fragments(potential, frame)
            result = potential.compute(frame.structure)
            labelled = frame.polarizability is not None or frame.born_charges is not None
            answer = response(potential, frame.structure) if labelled or with_response else None
        except KqeqError as error:
            raise KqeqError(f"{frame.place}: {error}") from None
        errors.append(_errors(frame if potential.has_charges else replace(frame, charges=None), result, answer))
        if result.reference_residual is not None:
            residuals.append(float(np.mean(result.reference_residual**2)))
        if answer is not None and with_response:
            polarizabilities.append(float(np.trace(answer.polarizability)) / 3.0)
    table = error_table(frames, errors)
    if residuals:
        table["reference_charge_residual"] = float(np.sqrt(np.mean(residuals)))
    if polarizabilities:
        table["mean_polarizability"] = float(np.mean(polarizabilities))
        table["mean_polarizability_volume"] = COULOMB_CONSTANT * table["mean_polarizability"]
    return table


def evaluate_local_part(model: Model, frames: Sequence[Frame]) -> dict[str, Any]:
    """The same table for the short range alone, as if there were no charges."""
    potential, kernels, errors = Potential(model), LocalKernels(model), []
    for frame in frames:
        structure = frame.structure
        species = potential.species_index(structure.numbers)
        pairs = find_pairs(structure, model.cutoff)
        local = LocalPart(kernels, species, pairs)
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


def _errors(frame: Frame, result: Result, answer: Response | None) -> Errors:
    assert result.forces is not None
    out = _energy_and_force_errors(frame, result.energy, result.forces)
    if frame.charges is not None:
        out["charges"] = result.charges - frame.charges
    if frame.dipole is not None and result.dipole is not None:
        out["dipole"] = result.dipole - frame.dipole
    if answer is not None and frame.polarizability is not None:
        out["polarizability"] = (answer.polarizability - frame.polarizability).ravel()
    if answer is not None and frame.born_charges is not None:
        out["born_charges"] = (answer.born_charges - frame.born_charges).ravel()
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
    """The table as text: RMSE (MAE) in meV, meV/A, me, me A, ...; one line per group, and what else is in it."""
    shown = [q for q in QUANTITIES if q in table or q not in ("polarizability", "born_charges")]
    head = [f"{name} / {_thousandth(QUANTITIES[name])}" for name in shown]
    rows = [("all", table)]
    rows += [(f"Q = {charge}", group) for charge, group in table["by_total_charge"].items()]
    rows += [(f"{name} field", group) for name, group in table["by_field"].items()]
    lines = [f"{'':<15}{'frames':>7}" + _cells(head, head)]
    for name, group in rows:
        cells = [f"{1e3 * group[q]['rmse']:.2f} ({1e3 * group[q]['mae']:.2f})" if q in group else "-" for q in shown]
        lines.append(f"{name:<15}{group['n_frames']:>7}" + _cells(cells, head))
    if "reference_charge_residual" in table:
        lines.append(f"reference charges miss their sums by {1e3 * table['reference_charge_residual']:.2f} me (rms)")
    if "mean_polarizability" in table:
        lines.append(
            f"mean polarizability {table['mean_polarizability']:.4f} e^2 A^2/eV = "
            f"{table['mean_polarizability_volume']:.3f} A^3"
        )
    return "\n".join(lines)


def _thousandth(unit: str) -> str:
    return f"m({unit})" if "^" in unit else f"m{unit}"


def _cells(cells: Sequence[str], head: Sequence[str]) -> str:
    """Right-aligned under a head."""
    return "".join(f"{cell:>{max(18, len(title) + 2)}}" for cell, title in zip(cells, head, strict=True))
