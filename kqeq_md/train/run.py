"""`kqeq train`: from a configuration to a model that knows where it comes from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kqeq_md import __version__
from kqeq_md.compression import Compressed, compress
from kqeq_md.elements import symbol_of
from kqeq_md.errors import ConfigError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.reference import make_reference
from kqeq_md.structure import Floats
from kqeq_md.train.config import Config
from kqeq_md.train.data import Frame, read_frames
from kqeq_md.train.design import Progress
from kqeq_md.train.fit import fit
from kqeq_md.train.molecules import prepared
from kqeq_md.train.report import (
    error_table,
    evaluate_local_part,
    format_table,
    point_charge_floor,
    predict,
    without_charges,
)
from kqeq_md.train.report.content import ReportInput
from kqeq_md.train.report.learning_curve import learning_curve

log = logging.getLogger("kqeq_md")

LEVEL_WARNING = (
    "ionisation energies are undetermined: in every training frame the total charge follows from the composition, so "
    "that the level of the electronegativity cannot be told from the per-element energies; energies of frames with "
    "one composition and different total charges cannot be compared"
)


@dataclass(frozen=True)
class Trained:
    """A model, the report of its training as text, and what the report in a folder is made of."""

    model: Model
    text: str
    report: ReportInput


def train(config: Config, progress: Progress, with_learning_curve: bool = False) -> Trained:
    """Read the data, fit, and measure the errors on training and test frames.

    Args:
        config: the whole configuration.
        progress: shown over frames.
        with_learning_curve: train on parts of the training frames too, for the report.

    Raises:
        ConfigError: data that cannot be used, hardness and widths that give no positive definite Hamiltonian.
    """
    sets = {"train": read_frames(config.data.train, config.data.keys)}
    if config.data.test:
        sets["test"] = read_frames(config.data.test, config.data.keys)
        _check_elements(sets["train"], sets["test"])
    fitted = fit(sets["train"], config, progress)
    if not fitted.level_determined:
        log.warning(LEVEL_WARNING)
    compressed = compress(fitted.model, lambda potential: all_forces(potential, sets["train"]))
    predictions = {name: predict(compressed.model, frames, progress) for name, frames in sets.items()}
    errors = {name: error_table(frames, predictions[name]) for name, frames in sets.items()}
    alone = {name: evaluate_local_part(fitted.short_range_only, frames) for name, frames in sets.items()}
    floors = {name: point_charge_floor(frames) for name, frames in sets.items()}
    settings = asdict(config)
    for name in ("train", "test"):
        settings["data"][name] = [Path(file).name for file in getattr(config.data, name)]
    record = {
        "history": fitted.history,
        "regularisation": asdict(fitted.regularisation),
        "physical": fitted.physical,
        "kqeq_md": __version__,
        "config": settings,
        "data_sha256": {Path(f).name: _sha256(f) for f in [*config.data.train, *config.data.test]},
        "seed": config.seed,
        "errors": errors,
        "errors_short_range_only": alone,
        "point_charge_floor": floors,
        "level_determined": fitted.level_determined,
        "low_rank_force_error": compressed.force_error,
    }
    model = replace(compressed.model, training=json.loads(json.dumps(record)))
    largest = max(sets["train"], key=lambda frame: len(frame.structure)).structure
    model = replace(model, reference=make_reference(Potential(model), largest))
    curve = None
    if with_learning_curve:
        curve = learning_curve(
            sets["train"],
            sets.get("test", []),
            lambda frames: fit(frames, config, progress).model,
            progress,
            config.seed,
            whole=fitted.model,
        )
    others = {"same short range without charges": without_charges(fitted.short_range_only)}
    report = ReportInput(model, "model", sets, predictions, others=others, learning_curve=curve)
    return Trained(model, "\n".join([_text(errors, alone, floors), _low_rank_text(compressed)]), report)


def _low_rank_text(compressed: Compressed) -> str:
    (term,) = compressed.model.terms
    if term.low_rank is None or compressed.force_error is None:
        return "no kernel of low rank"
    ranks = ", ".join(
        f"{symbol} {len(low)} of {len(points)}"
        for symbol, low, points in zip(compressed.model.species, term.low_rank.points, term.sparse_points, strict=True)
    )
    return f"kernel of low rank: {ranks}; training forces change by {compressed.force_error:.1e} of their rms"


def all_forces(potential: Potential, frames: Sequence[Frame]) -> Floats:
    """Forces on all atoms of all frames, eV/Angstrom, shape (n, 3)."""
    out = []
    for frame in frames:
        forces = prepared(potential, frame).compute(frame.structure, want=("forces",)).forces
        assert forces is not None
        out.append(forces)
    return np.concatenate(out)


def _check_elements(train_frames: Sequence[Frame], test_frames: Sequence[Frame]) -> None:
    known = {int(z) for frame in train_frames for z in frame.structure.numbers}
    new = {int(z) for frame in test_frames for z in frame.structure.numbers} - known
    if new:
        raise ConfigError(f"`data.test` holds {symbol_of(min(new))}, an element that `data.train` lacks")


def _sha256(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _text(errors: dict[str, Any], alone: dict[str, Any], floors: dict[str, float | None]) -> str:
    lines = ["RMSE (MAE)"]
    for name, table in errors.items():
        lines += [f"\n{name}", format_table(table)]
        short = " ".join(
            f"{quantity} {1e3 * alone[name][quantity]['rmse']:.1f} m{unit}"
            for quantity, unit in (("energy_per_atom", "eV"), ("forces", "eV/A"))
            if quantity in alone[name]
        )
        lines.append(f"same short range without charges: {short}")
        if (floor := floors[name]) is not None:
            lines.append(
                f"floor that point charges leave in the energies of frames in a field, rms F.(mu - sum q r)/N: "
                f"{1e3 * floor:.1f} meV"
            )
    return "\n".join(lines)
