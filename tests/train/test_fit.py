"""The whole fit on small sets with known answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import ConfigError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.train.config import Config
from kqeq_md.train.data import Frame
from kqeq_md.train.fit import fit
from kqeq_md.train.report import evaluate, evaluate_local_part


def test_fit_finds_a_model_that_made_the_data(sets: Any, model: Model) -> None:
    """Labels of a kQEq model are reproduced on frames that the fit has not seen, ionisation energies included."""
    frames = sets.random_clusters(6, 60, model, same_composition=True)
    fitted = fit(frames[:48], sets.small_config(model), sets.silent)
    assert fitted.level_determined
    errors = evaluate(fitted.model, frames[48:], sets.silent)
    assert errors["charges"]["rmse"] < 2e-3  # against charges of about 0.3 e
    assert errors["energy_per_atom"]["rmse"] < 5e-3
    chance = evaluate_local_part(fitted.short_range_only, frames[48:])
    assert errors["energy_per_atom"]["rmse"] < 0.1 * chance["energy_per_atom"]["rmse"]


def test_level_follows_ionisation_energies(sets: Any, model: Model) -> None:
    """Lifting chi by c moves E by c Q: with equal compositions at three charges the fit sees the new level."""
    lifted = replace(model, electronegativity_offset=model.electronegativity_offset + 2.0)
    levels = []
    for maker in (model, lifted):
        frames = sets.random_clusters(7, 30, maker, same_composition=True)
        levels.append(fit(frames, sets.small_config(model), sets.silent).model.electronegativity_offset)
    np.testing.assert_allclose(levels[1] - levels[0], 2.0, atol=1e-3)  # far below the labels' 1e-5 eV per atom / Q


def test_level_is_reported_undetermined(sets: Any, model: Model) -> None:
    frames = sets.random_clusters(8, 12, model, same_composition=False)
    assert not fit(frames, sets.small_config(model, rounds=0), sets.silent).level_determined


def test_dipoles_alone_teach_charges(sets: Any, model: Model) -> None:
    """In 8-atom clusters dipoles tell less than charges, but far more than nothing."""
    frames = [replace(f, charges=None) for f in sets.random_clusters(9, 60, model, True)]
    config = sets.small_config(model, targets=["dipole"], sigma_dipole=1e-5, rounds=0)
    fitted = fit(frames[:48], config, sets.silent)
    errors = evaluate(fitted.model, frames[48:], sets.silent)
    without = fitted.model.with_weights([0 * w for w in fitted.model.terms[0].weights])
    blank = evaluate(without, frames[48:], sets.silent)
    assert errors["dipole"]["rmse"] < 0.3 * blank["dipole"]["rmse"]


def test_missing_targets_are_named(sets: Any, model: Model) -> None:
    frames = [replace(f, charges=None) for f in sets.random_clusters(1, 3, model, True)]
    with pytest.raises(ConfigError, match=r"`fit.targets` are \['charges'\]"):
        fit(frames, sets.small_config(model), sets.silent)


def test_frames_without_energies_or_forces_are_used_for_what_they_have(sets: Any, model: Model) -> None:
    frames = sets.random_clusters(1, 9, model, True)
    mixed = [
        replace(frames[0], energy=None),
        replace(frames[1], forces=None),
        replace(frames[2], dipole=None),
        *frames[3:],
    ]
    assert np.isfinite(fit(mixed, sets.small_config(model, rounds=1), sets.silent).model.terms[0].weights[0]).all()


def split_frames(sets: Any, seed: int, count: int, maker: Model) -> list[Frame]:
    """Clusters labelled by a model with split charges; surroundings tell the total charge, so that q0 can."""
    return sets.random_clusters(seed, count, maker, same_composition=False)


def split_config(sets: Any, maker: Model, **changes: object) -> Config:
    config = sets.small_config(maker, **changes)
    return replace(config, charges=replace(config.charges, model="split"))


def test_split_charges_are_learned_from_a_model_that_made_the_data(sets: Any, model: Model) -> None:
    """Charges of unseen frames, sums of reference charges, and energies after the rounds."""
    maker = sets.with_learned_reference(model)
    frames = split_frames(sets, 6, 48, maker)
    fitted = fit(frames[:40], split_config(sets, maker), sets.silent).model
    assert fitted.charges == "split"
    assert fitted.learned_reference
    errors, spread = evaluate(fitted, frames[40:], sets.silent), evaluate(maker, frames[40:], sets.silent)
    charges = np.concatenate([frame.charges for frame in frames[40:]])
    assert errors["charges"]["rmse"] < 0.05 * charges.std()
    assert errors["energy_per_atom"]["rmse"] < 0.01
    assert errors["reference_charge_residual"] < 0.05 * spread["reference_charge_residual"]


def test_forces_of_a_trained_split_model_are_differences_of_its_energy(sets: Any, model: Model) -> None:
    maker = sets.with_learned_reference(model)
    frames = split_frames(sets, 6, 12, maker)
    potential = Potential(fit(frames, split_config(sets, maker, rounds=1), sets.silent).model)
    structure = frames[1].structure
    forces = potential.compute(structure).forces
    h = 1e-3
    for atom, axis in ((0, 2), (5, 1)):
        shifted = []
        for step in (-2, -1, 1, 2):
            moved = structure.positions.copy()
            moved[atom, axis] += step * h
            shifted.append(potential.compute(sets.replace_positions(structure, moved), want=()).energy)
        slope = (shifted[0] - 8 * shifted[1] + 8 * shifted[2] - shifted[3]) / (12 * h)
        assert forces[atom, axis] == pytest.approx(-slope, abs=1e-7 * np.abs(forces).max())  # h^4
