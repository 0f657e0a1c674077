"""`kqeq train`: from a configuration to a model that knows where it comes from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kqeq_md import __version__
from kqeq_md.compression import Compressed, compress
from kqeq_md.elements import symbol_of
from kqeq_md.errors import ConfigError
from kqeq_md.machine.quiet import quietly
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.reference import make_reference
from kqeq_md.train.calibration import calibrate
from kqeq_md.train.checkpoint import Checkpoint, fingerprint
from kqeq_md.train.config import Config
from kqeq_md.train.data import Frame, read_set
from kqeq_md.train.data.composition import atom_energies
from kqeq_md.train.data.findings import inspect_frames, warn_of
from kqeq_md.train.fit import Fitted, fit
from kqeq_md.train.fit.design import Progress
from kqeq_md.train.fit.molecules import all_forces
from kqeq_md.train.report import error_table, format_table, point_charge_floor, predict, without_charges
from kqeq_md.train.report.content import ReportInput
from kqeq_md.train.report.learning_curve import learning_curve

log = logging.getLogger("kqeq_md")

LEVEL_WARNING = (
    "ionisation energies are undetermined: in every training frame the total charge follows from the composition, so "
    "that the level of the electronegativity cannot be told from the per-element energies; energies of frames with "
    "one composition and different total charges cannot be compared"
)

ALONE = "same short range without charges"
WITHOUT_FIELD = "charges but without the field term"


@dataclass(frozen=True)
class Trained:
    """A model, the report of its training as text, and what the report in a folder is made of."""

    model: Model
    text: str
    report: ReportInput


def train(
    config: Config, progress: Progress, checkpoint: Path | None = None, with_learning_curve: bool = False
) -> Trained:
    """Read the data, fit, and measure the errors on training and test frames.

    The same data, configuration and versions give the same model, byte for byte, with any number of threads.

    Args:
        config: the whole configuration.
        progress: shown over frames.
        checkpoint: file for what has been reached; a run of the same goes on from there. It stays: what comes after,
            writing the model first of all, may fail.
        with_learning_curve: train on parts of the training frames too, for the report.

    Raises:
        ConfigError: data that cannot be used, hardness and widths that give no positive definite Hamiltonian.
    """
    sets = {"train": read_set(config.data)}
    if config.data.test:
        sets["test"] = read_set(config.data, "test")
        _check_elements(sets["train"], sets["test"])
    findings = inspect_frames(sets["train"], sets.get("test", ()))
    warn_of(findings)
    origin = _origin(config)
    kept = Checkpoint(checkpoint, fingerprint(origin))
    free_atoms = atom_energies(sets["train"], config.data)
    begin = time.monotonic()
    fitted = fit(sets["train"], config, progress, free_atoms, kept)
    log.info("fitted in %.1f s and %d rounds", time.monotonic() - begin, len(fitted.history))
    if not fitted.level_determined:
        log.warning(LEVEL_WARNING)
    with quietly():
        compressed = compress(fitted.model, lambda potential: all_forces(potential, sets["train"]))
        calibration = _calibration(fitted, sets["train"])
    log.info("%s", _low_rank_text(compressed))
    predictions = {name: predict(compressed.model, frames, progress) for name, frames in sets.items()}
    errors = {name: error_table(frames, predictions[name]) for name, frames in sets.items()}
    alone = without_charges(fitted.short_range_only)
    record = {
        **origin,
        **_of_fit(fitted),
        **({} if calibration is None else {"extrapolation": calibration}),
        "errors": errors,
        "errors_short_range_only": {
            name: error_table(frames, predict(alone, frames, progress)) for name, frames in sets.items()
        },
        "point_charge_floor": {name: point_charge_floor(frames) for name, frames in sets.items()},
        "low_rank_force_error": compressed.force_error,
    }
    model = replace(compressed.model, training=json.loads(json.dumps(record)))
    largest = max(sets["train"], key=lambda frame: len(frame.structure)).structure
    model = replace(model, reference=make_reference(Potential(model, threads=1), largest))
    report = ReportInput(
        model,
        "model",
        sets,
        predictions,
        others={ALONE: alone, **({WITHOUT_FIELD: model} if _in_field(sets) else {})},
        blind_to_field=[WITHOUT_FIELD],
        findings=[finding.message for finding in findings],
        calibration=calibration,
        history=fitted.history,
        learning_curve=_learning_curve(sets, config, progress, fitted.model) if with_learning_curve else None,
    )
    return Trained(model, "\n".join([_text(record), _low_rank_text(compressed)]), report)


def _origin(config: Config) -> dict[str, Any]:
    """What the model comes from: version, configuration, seed and data, with paths that do not depend on the place."""
    files = [*config.data.train, *config.data.test]
    folder = os.path.commonpath([Path(file).resolve().parent for file in files])
    names = {file: Path(os.path.relpath(Path(file).resolve(), folder)).as_posix() for file in files}
    settings = asdict(config)
    for name in ("train", "test"):
        settings["data"][name] = [names[file] for file in getattr(config.data, name)]
    return {
        "kqeq_md": __version__,
        "config": settings,
        "data_sha256": {names[file]: _sha256(file) for file in files},
        "seed": config.seed,
    }


def _of_fit(fitted: Fitted) -> dict[str, Any]:
    """What the fit has found beside the model."""
    return {
        "history": fitted.history,
        "regularisation": asdict(fitted.regularisation),
        "physical": fitted.physical,
        "level_determined": fitted.level_determined,
    }


def _calibration(fitted: Fitted, frames: Sequence[Frame]) -> dict[str, Any] | None:
    """The limits of the model; None without forces that were held out."""
    held_out = [frame for frame in frames if frame.place in fitted.held_out]
    if fitted.without_held_out is None or all(frame.forces is None for frame in held_out):
        return None
    rest = [frame for frame in frames if frame.place not in fitted.held_out]
    return calibrate(fitted.without_held_out, held_out, rest)


def _learning_curve(
    sets: Mapping[str, Sequence[Frame]], config: Config, progress: Progress, whole: Model
) -> dict[str, Any]:
    free_atoms = atom_energies(sets["train"], config.data)

    def fit_some(frames: Sequence[Frame]) -> Model:
        return fit(frames, config, progress, free_atoms).model

    return learning_curve(sets["train"], sets.get("test", []), fit_some, progress, config.seed, whole)


def _in_field(sets: Mapping[str, Sequence[Frame]]) -> bool:
    return any(frame.structure.field.any() for frames in sets.values() for frame in frames)


def _low_rank_text(compressed: Compressed) -> str:
    (term,) = compressed.model.terms
    if term.low_rank is None or compressed.force_error is None:
        return "no kernel of low rank"
    ranks = ", ".join(
        f"{symbol} {len(low)} of {len(points)}"
        for symbol, low, points in zip(compressed.model.species, term.low_rank.points, term.sparse_points, strict=True)
    )
    return f"kernel of low rank: {ranks}; training forces change by {compressed.force_error:.1e} of their rms"


def _check_elements(train_frames: Sequence[Frame], test_frames: Sequence[Frame]) -> None:
    known = {int(z) for frame in train_frames for z in frame.structure.numbers}
    new = {int(z) for frame in test_frames for z in frame.structure.numbers} - known
    if new:
        raise ConfigError(f"`data.test` holds {symbol_of(min(new))}, an element that `data.train` lacks")


def _sha256(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _text(record: Mapping[str, Any]) -> str:
    lines = ["RMSE (MAE)"]
    for name, table in record["errors"].items():
        lines += [f"\n{name}", format_table(table)]
        alone = record["errors_short_range_only"][name]
        short = " ".join(
            f"{quantity} {1e3 * alone[quantity]['rmse']:.1f} m{unit}"
            for quantity, unit in (("energy_per_atom", "eV"), ("forces", "eV/A"))
            if quantity in alone
        )
        lines.append(f"{ALONE}: {short}")
        if (floor := record["point_charge_floor"][name]) is not None:
            lines.append(
                f"floor that point charges leave in the energies of frames in a field, rms F.(mu - sum q r)/N: "
                f"{1e3 * floor:.1f} meV"
            )
    return "\n".join(lines)
