"""Errors of a model on labelled frames, by quantity, total charge, field, group and element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kqeq_md.elements import symbol_of
from kqeq_md.model import Model
from kqeq_md.structure import Floats
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.design import Progress
from kqeq_md.train.report.predictions import PER_ATOM, QUANTITIES, Prediction, predict
from kqeq_md.units import COULOMB_CONSTANT

WITH, WITHOUT = "with", "without"
"""Names of the groups `by_field`."""


def evaluate(
    model: Model,
    frames: Sequence[Frame],
    progress: Progress,
    charges: str | None = None,
    fragments: bool = False,
    with_response: bool = False,
) -> dict[str, Any]:
    """The error table of a model on labelled frames.

    Args:
        model: to be measured.
        frames: with their labels.
        progress: shown over the frames.
        charges: as in `Potential`.
        fragments: whether molecules keep their charges: the frames' own, else found in each frame by connectivity.
        with_response: compute polarizabilities also where there is no label.

    Returns:
        see `error_table`.

    Raises:
        KqeqError: naming the frame.
    """
    return error_table(frames, predict(model, frames, progress, charges, fragments, with_response))


def error_table(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """RMSE and MAE of all frames and of its groups, as JSON, in the units of QUANTITIES.

        rmse = sqrt(mean (prediction - label)^2),   mae = mean |prediction - label|

    Charges count per atom, energies per frame, all else per component; `{"rmse": ..., "mae": ...}` under the name of
    each quantity that has labels, and `n_frames`. The same under `by_total_charge` ("-1", "0", ...), `by_field`
    ("with", "without"), `by_group` (where frames of several groups are there) and, for forces and charges and with
    `n_atoms`, `by_element`. Beside them, where they exist, `reference_charge_residual` (e): what learned reference
    charges miss of their sums, rms over frames; and `mean_polarizability` (e^2 A^2/eV) with
    `mean_polarizability_volume` (A^3): trace / 3, mean over frames.
    """
    table: dict[str, Any] = {"n_frames": len(frames), **_summary(predictions)}
    table["by_total_charge"] = _groups(frames, predictions, charge_of)
    table["by_field"] = _groups(frames, predictions, field_of)
    if len({frame.group for frame in frames}) > 1:
        table["by_group"] = _groups(frames, predictions, lambda frame: frame.group or "(no name)")
    table["by_element"] = _by_element(frames, predictions)
    residuals = [p.reference_residual for p in predictions if p.reference_residual is not None]
    polarizabilities = [p.mean_polarizability for p in predictions if p.mean_polarizability is not None]
    if residuals:
        table["reference_charge_residual"] = float(np.sqrt(np.mean(residuals)))
    if polarizabilities:
        table["mean_polarizability"] = float(np.mean(polarizabilities))
        table["mean_polarizability_volume"] = COULOMB_CONSTANT * table["mean_polarizability"]
    return table


def charge_of(frame: Frame) -> str:
    """Total charge in e as a name, "-1"."""
    return f"{frame.structure.charge:g}"


def field_of(frame: Frame) -> str:
    """Whether the frame lies in a field: "with" or "without"."""
    return WITH if frame.structure.field.any() else WITHOUT


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


def _measures(errors: Floats) -> dict[str, float]:
    return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}


def _summary(predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    out = {}
    for quantity in QUANTITIES:
        parts = [p.error(quantity) for p in predictions if quantity in p.labels]
        if parts:
            out[quantity] = _measures(np.concatenate(parts))
    return out


def _groups(
    frames: Sequence[Frame], predictions: Sequence[Prediction], key: Callable[[Frame], str]
) -> dict[str, dict[str, Any]]:
    members: dict[str, list[Prediction]] = {}
    for frame, prediction in zip(frames, predictions, strict=True):
        members.setdefault(key(frame), []).append(prediction)
    return {name: {"n_frames": len(group), **_summary(group)} for name, group in sorted(members.items())}


def _by_element(frames: Sequence[Frame], predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    """Errors of forces and charges of the atoms of each element, by atomic number."""
    numbers = np.concatenate([frame.structure.numbers for frame in frames]) if frames else np.zeros(0, dtype=np.int64)
    out: dict[str, dict[str, Any]] = {
        symbol_of(int(z)): {"n_atoms": int(count)}
        for z, count in zip(*np.unique(numbers, return_counts=True), strict=True)
    }
    for quantity, width in PER_ATOM.items():
        pairs = [
            (frame.structure.numbers, prediction.error(quantity))
            for frame, prediction in zip(frames, predictions, strict=True)
            if quantity in prediction.labels
        ]
        if not pairs:
            continue
        labelled = np.concatenate([z for z, _ in pairs])
        errors = np.concatenate([error for _, error in pairs]).reshape(len(labelled), width)
        for z in np.unique(labelled):
            out[symbol_of(int(z))][quantity] = _measures(errors[labelled == z])
    return out
