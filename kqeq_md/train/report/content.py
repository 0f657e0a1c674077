"""What a report says, as JSON: the numbers behind every table and plot of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kqeq_md import __version__
from kqeq_md.model import PER_PAIR, PER_SPECIES, Model
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.design import Progress
from kqeq_md.train.report.errors import error_table, point_charge_floor
from kqeq_md.train.report.predictions import QUANTITIES, Prediction, predict

UNITS = {
    "energy": "eV", "length": "Angstrom", "charge": "e", "field": "V/Angstrom", "hardness": "eV/e^2",
    "gaussian_width": "Angstrom", "electronegativity_offset": "eV/e", "atom_energy": "eV",
    "repulsion_radius": "Angstrom", "reference_charge": "e", "compliance": "e^2/eV", "compliance_cutoff": "Angstrom",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ReportInput:
    """Everything that a report is made of. Only model, name and sets are needed.

    Attributes:
        model: as it is saved, with its record of the training.
        name: of the model, for headings.
        sets: labelled frames by the name of their set, "train" and "test".
        predictions: of `model` on each set, where they are known already.
        others: models to be compared with it on the same frames, by a name that says what they are.
        blind_to_field: names of those `others` that are computed without the frames' fields.
        findings: of the check of the data, one sentence each.
        calibration: of the extrapolation measure, as `train.calibration.calibrate` returns it.
        history: of the fit, as `train.fit.Fitted` has it.
        learning_curve: as `learning_curve` returns it.
    """

    model: Model
    name: str
    sets: Mapping[str, Sequence[Frame]]
    predictions: Mapping[str, Sequence[Prediction]] | None = None
    others: Mapping[str, Model] = field(default_factory=dict)
    blind_to_field: Sequence[str] = ()
    findings: Sequence[str] = ()
    calibration: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, Any]] = ()
    learning_curve: Mapping[str, Any] | None = None


def predictions_of(given: ReportInput, progress: Progress) -> Mapping[str, Sequence[Prediction]]:
    """The model's predictions on each set, computed unless they are given."""
    if given.predictions is not None:
        return given.predictions
    return {name: predict(given.model, frames, progress) for name, frames in given.sets.items()}


def report_content(
    given: ReportInput,
    predictions: Mapping[str, Sequence[Prediction]],
    diagnosis: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """The report as JSON. Numbers are in eV, Angstrom, e and their products; `units` repeats them.

    Keys, of which those in brackets are there only if they were given:
        name, kqeq_md: of the model; version of the package.
        units: of quantities and parameters.
        model: species, charge model, `parameters` (per species and per pair), `kernels` (hyperparameters, sparse
            points and low rank per species), `low_rank_force_error` (relative to the rms of training forces).
        training: `config`, `data_sha256`, `seed`, `level_determined`, as the model file has them.
        data: per set the numbers of frames, atoms and labels, and the frames of each total charge and group.
        errors: per set what `error_table` returns.
        comparison: per set and per model (`others`) its `error_table`; the model itself comes first.
        point_charge_floor: per set, eV per atom; null without labels.
        diagnosis: `{"skipped": reason}`, or `measured_on` and what `kqeq diagnose --json` prints.
        findings: sentences.
        [calibration], [history], [learning_curve]: as given.
    """
    errors = {name: error_table(frames, predictions[name]) for name, frames in given.sets.items()}
    out: dict[str, Any] = {
        "name": given.name,
        "kqeq_md": __version__,
        "units": {**QUANTITIES, **UNITS},
        "model": model_content(given.model),
        "training": {
            key: value
            for key, value in given.model.training.items()
            if key in ("config", "data_sha256", "seed", "level_determined")
        },
        "data": {name: data_content(frames) for name, frames in given.sets.items()},
        "errors": errors,
        "comparison": compare(given, errors, progress),
        "point_charge_floor": {name: point_charge_floor(frames) for name, frames in given.sets.items()},
        "diagnosis": dict(diagnosis),
        "findings": list(given.findings),
    }
    if given.calibration is not None:
        out["calibration"] = dict(given.calibration)
    if given.history:
        out["history"] = [dict(entry) for entry in given.history]
    if given.learning_curve is not None:
        out["learning_curve"] = dict(given.learning_curve)
    return out


def compare(
    given: ReportInput, errors: Mapping[str, Mapping[str, Any]], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Error tables of the model and of the others on the same frames, by set and by name."""
    out: dict[str, dict[str, Any]] = {}
    for name, frames in given.sets.items():
        out[name] = {"this model": errors[name]}
        for other, model in given.others.items():
            predictions = predict(model, frames, progress, in_field=other not in given.blind_to_field)
            out[name][other] = error_table(frames, predictions)
    return out


def data_content(frames: Sequence[Frame]) -> dict[str, Any]:
    """How many frames, atoms and labels there are; labels count frames, whatever their shape."""
    labels = {
        "energy": sum(frame.energy is not None for frame in frames),
        **{
            name: sum(getattr(frame, name) is not None for frame in frames)
            for name in ("forces", "charges", "dipole", "polarizability", "born_charges", "stress")
        },
    }
    return {
        "frames": len(frames),
        "atoms": sum(len(frame.structure) for frame in frames),
        "in_field": sum(bool(frame.structure.field.any()) for frame in frames),
        "boundaries": _counted(frame.structure.boundary for frame in frames),
        "total_charges": _counted(f"{frame.structure.charge:g}" for frame in frames),
        "groups": _counted(frame.group for frame in frames if frame.group),
        "labels": labels,
    }


def model_content(model: Model) -> dict[str, Any]:
    """Parameters and kernels of a model, without its arrays."""
    parameters: dict[str, Any] = {
        name: dict(zip(model.species, getattr(model, name).tolist(), strict=True)) for name in PER_SPECIES
    }
    if model.charges == "split":
        first, second = np.triu_indices(len(model.species))
        for name in PER_PAIR:
            table = getattr(model, name)
            parameters[name] = {
                f"{model.species[i]}-{model.species[j]}": float(table[i, j]) for i, j in zip(first, second, strict=True)
            }
    kernels = [
        {
            "soap": vars(term.soap),
            "zeta": term.zeta,
            "sparse_points": dict(zip(model.species, map(len, term.sparse_points), strict=True)),
            "low_rank": None
            if term.low_rank is None
            else dict(zip(model.species, map(len, term.low_rank.points), strict=True)),
        }
        for term in model.terms
    ]
    return {
        "species": list(model.species),
        "charges": model.charges,
        "learned_reference_charges": model.learned_reference,
        "parameters": parameters,
        "kernels": kernels,
        "low_rank_force_error": model.training.get("low_rank_force_error"),
    }


def _counted(names: Any) -> dict[str, int]:
    """How often each name occurs, names in order."""
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
