"""What errors a measure of extrapolation goes with, learned from frames that the fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.molecules import for_each

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)

MARGIN = 1.25
"""Threshold over the largest measure of held-out atoms: frames of other compositions measure a little more."""

BINS = 12
"""Of the expected error; each holds as many held-out atoms as the others."""

FEWEST = 20
"""Atoms in a bin: medians of fewer mean little."""


def calibrate(model: Model, held_out: Sequence[Frame], training: Sequence[Frame]) -> dict[str, Any]:
    """The threshold of the measure of extrapolation, and the force error that a measure goes with, as JSON.

        threshold = MARGIN max_i measure_i    (1 - 1e-3 quantile where there are thousands of atoms)

    over the atoms i of the held-out frames. The result belongs into `training["extrapolation"]` of the final model,
    which may be fitted to all frames with sparse points of the same kind. Keys: `threshold`, `quantiles` of the
    measure of held-out atoms, `n_atoms` of them, `charges` (lowest and highest of each element, e) and
    `charge_per_atom` of all frames, and `expected_force_error`: for bins of the measure their `upper` ends, and
    `median` and `p95` (eV/Angstrom) of |F_i - label|, neither of which falls from one bin to the next.

    Args:
        model: fitted without the held-out frames.
        held_out: with forces.
        training: those that the model was fitted to.

    Raises:
        ConfigError: no held-out frame has forces, or the model has no charges.
        KqeqError: naming the frame.
    """
    labelled = [frame for frame in held_out if frame.forces is not None]
    if not labelled:
        raise ConfigError(f"`held_out` must hold frames with forces, got {len(held_out)} without any")
    if not model.has_charges:
        raise ConfigError("`model` must have charges to be calibrated, got one without")
    ranges = _ranges(model, [*training, *held_out])
    # what is compared with the ranges themselves must not set the threshold
    trial = {"threshold": 1.0, "charges": {}, "charge_per_atom": [-np.inf, np.inf]}
    potential = Potential(replace(model, training={**model.training, "extrapolation": trial}), threads=1)
    measures, errors = zip(*for_each(potential, labelled, _measured), strict=True)
    measure, error = np.concatenate(measures), np.concatenate(errors)
    return {
        "threshold": MARGIN * float(np.quantile(measure, 0.999)),
        "quantiles": {f"{q:g}": float(np.quantile(measure, q)) for q in QUANTILES},
        "n_atoms": len(measure),
        **ranges,
        "expected_force_error": expected_errors(measure, error),
    }


def expected_errors(measure: Floats, error: Floats) -> dict[str, list[float]]:
    """Medians and 95 % quantiles of errors in bins of the measure, none of them below that of a bin before.

    Args:
        measure: shape (n,).
        error: |F_i - label|, eV/Angstrom, shape (n,).
    """
    order = np.argsort(measure, kind="stable")
    bins = np.array_split(order, max(1, min(BINS, len(order) // FEWEST)))
    tables = {"median": [np.quantile(error[rows], 0.5) for rows in bins]}
    tables["p95"] = [np.quantile(error[rows], 0.95) for rows in bins]
    return {
        "upper": [float(measure[rows[-1]]) for rows in bins],
        **{name: np.maximum.accumulate(values).tolist() for name, values in tables.items()},
    }


def _measured(potential: Potential, frame: Frame) -> tuple[Floats, Floats]:
    """Measure and force error of each atom, shapes (n,)."""
    try:
        result = potential.compute(frame.structure, want=("forces",))
        measure = potential.extrapolation(frame.structure, result=result)
    except KqeqError as error:
        raise KqeqError(f"{frame.place}: {error}") from None
    assert result.forces is not None
    assert frame.forces is not None
    return measure, np.linalg.norm(result.forces - frame.forces, axis=1)


def _ranges(model: Model, frames: Sequence[Frame]) -> dict[str, Any]:
    """`charges` that the model gives each element in these frames, and `charge_per_atom` of the frames."""
    totals = [frame.structure.charge / len(frame.structure) for frame in frames]
    charges = np.concatenate(for_each(Potential(model, threads=1), frames, _charges))
    numbers = np.concatenate([frame.structure.numbers for frame in frames])
    found = {}
    for symbol, number in zip(model.species, model.numbers, strict=True):
        own = charges[numbers == number]
        found[symbol] = [float(own.min()), float(own.max())]
    return {"charges": found, "charge_per_atom": [min(totals), max(totals)]}


def _charges(potential: Potential, frame: Frame) -> Floats:
    try:
        return potential.compute(frame.structure, want=()).charges
    except KqeqError as error:
        raise KqeqError(f"{frame.place}: {error}") from None
