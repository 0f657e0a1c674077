"""The whole fit on small sets with known answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import ConfigError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.train.checkpoint import Checkpoint
from kqeq_md.train.config import Config
from kqeq_md.train.data import Frame
from kqeq_md.train.fit import fit
from kqeq_md.train.fit.design import split_into_batches
from kqeq_md.train.fit.start import FEWEST_FRAMES, blank_model, choose_basis, held_out_places
from kqeq_md.train.report import evaluate, without_charges


def test_fit_finds_a_model_that_made_the_data(sets: Any, model: Model) -> None:
    """Labels of a kQEq model are reproduced on frames that the fit has not seen, ionisation energies included."""
    frames = sets.random_clusters(6, 60, model, same_composition=True)
    fitted = fit(frames[:48], sets.small_config(model), sets.silent)
    assert fitted.level_determined
    errors = evaluate(fitted.model, frames[48:], sets.silent)
    assert errors["charges"]["rmse"] < 2e-3  # against charges of about 0.3 e
    assert errors["energy_per_atom"]["rmse"] < 5e-3
    chance = evaluate(without_charges(fitted.short_range_only), frames[48:], sets.silent)
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
    # sums are told to sigma_reference, 0.05 e
    assert errors["reference_charge_residual"] < 0.1 * spread["reference_charge_residual"]


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


# ---------------------------------------------------------------- what frames bring, and how much


def with_points_of(frames: list[Frame], config: Config, sets: Any) -> Checkpoint:
    """A checkpoint with the sparse points of these frames: fits of other frames then differ in nothing but them."""
    blank = blank_model(frames, config, ATOMS)
    basis = choose_basis(frames, blank, config, sets.silent)
    kept = Checkpoint()
    kept.keep("points", **dict(zip(blank.species, basis.points, strict=True)))
    return kept


ATOMS = {"Na": -1.0, "Cl": -2.0}
LOOSE = {"sigma_energy": 0.002, "sigma_forces": 0.05, "sigma_charges": 0.005}


def test_a_frame_of_weight_four_is_that_frame_four_times(sets: Any, model: Model) -> None:
    frames = sets.random_clusters(6, 9, model, True)
    config = sets.small_config(model, **LOOSE, rounds=2)
    heavy = [replace(frames[0], weight=4.0), *frames[1:]]
    copies = [*[replace(frames[0], place=f"copy {k}") for k in range(3)], *frames]
    found = []
    for some in (heavy, copies, frames):
        points = with_points_of(frames, replace(config, kernel=replace(config.kernel, sparse_points=6)), sets)
        found.append(fit(some, config, sets.silent, ATOMS, points).model)
    charges, forces = (
        [getattr(Potential(m).compute(frames[0].structure), name) for m in found] for name in ("charges", "forces")
    )
    for values in (charges, forces):
        scale = np.abs(values[0]).max()
        np.testing.assert_allclose(values[0], values[1], atol=1e-6 * scale)  # rounding times condition
        assert np.abs(values[0] - values[2]).max() > 1e-4 * scale


def test_a_periodic_set_with_stresses_is_learned(sets: Any, model: Model) -> None:
    """Stresses and charges of cells, without energies or forces: pressures of unseen cells follow."""
    frames = [replace(f, energy=None, forces=None) for f in sets.random_cells(3, 28, model)]
    config = sets.small_config(model, sigma_virial=1e-3, rounds=2)
    fitted = fit(frames[:20], config, sets.silent, ATOMS).model
    blind = fit([replace(f, stress=None) for f in frames[:20]], config, sets.silent, ATOMS).model
    spread = float(np.std([frame.stress for frame in frames[20:]]))
    assert sets.rms(fitted, frames[20:], "stress") < 0.1 * spread
    assert sets.rms(blind, frames[20:], "stress") > 3.0 * sets.rms(fitted, frames[20:], "stress")


def test_given_atom_energies_stay(sets: Any, model: Model) -> None:
    """Of the maker they serve; fitted ones tell a set of one composition only their sum."""
    frames = sets.random_clusters(6, 12, model, True)
    config = sets.small_config(model, rounds=1)
    given = fit(frames, config, sets.silent, {"Na": -1.5, "Cl": -2.5}).model
    np.testing.assert_allclose(given.atom_energy, [-1.5, -2.5], atol=1e-4)  # GIVEN, drawn by labels far off
    mixed = sets.random_clusters(6, 30, model, False)
    free = fit(mixed, config, sets.silent).model
    assert np.abs(free.atom_energy - given.atom_energy).max() > 0.01


def test_batches_do_not_matter(sets: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [*sets.random_clusters(6, 8, model, True), *sets.random_cells(3, 3, model)]
    config, found = sets.small_config(model, **LOOSE, rounds=2), []
    for size in (1000, 20):
        monkeypatch.setattr(split_into_batches, "__defaults__", (size,))
        assert len(split_into_batches(frames)) == (1 if size == 1000 else 6)
        found.append(fit(frames, config, sets.silent, ATOMS).model)
    for frame in frames:
        one, other = (Potential(m).compute(frame.structure) for m in found)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-6 * np.abs(one.forces).max())  # order of sums
        np.testing.assert_allclose(one.charges, other.charges, atol=1e-7)


def test_held_out_frames_are_a_fair_part(sets: Any, model: Model) -> None:
    frames = sets.random_clusters(6, 40, model, True)
    chosen = held_out_places(frames, 0.1, 0)
    assert len(chosen) == 4
    assert chosen == held_out_places(frames, 0.1, 0) != held_out_places(frames, 0.1, 1)
    assert held_out_places(frames[: FEWEST_FRAMES - 1], 0.1, 0) == frozenset()
    assert held_out_places(frames, 0.0, 0) == frozenset()
    lone = replace(frames[0], structure=Structure([35, 11], [[0, 0, 0], [0, 0, 2.5]]))
    for seed in range(20):  # where the only bromine would be held out, nothing is
        assert lone.place not in held_out_places([lone, *frames[1:]], 0.1, seed)


def test_held_out_frames_choose_the_priors_and_join_at_the_end(sets: Any, model: Model) -> None:
    """Priors far too wide for noisy labels come down to the last; the final model knows all frames."""
    rng = np.random.default_rng(0)
    frames = [
        replace(f, charges=f.charges + 0.05 * rng.normal(size=8), forces=f.forces + rng.normal(size=(8, 3)))
        for f in sets.random_clusters(6, 30, model, True)
    ]
    config = sets.small_config(
        model, **LOOSE, rounds=2, held_out=0.2, regularisation="held_out", prior_electronegativity=300.0,
        prior_short_range=300.0,
    )  # fmt: skip
    found = fit(frames, config, sets.silent, ATOMS)
    assert len(found.held_out) == 6
    assert found.without_held_out is not None
    assert found.regularisation.factors == pytest.approx((0.1, 0.1))
    assert found.regularisation.after < found.regularisation.before
    held = [frame for frame in frames if frame.place in found.held_out]
    assert sets.rms(found.model, held, "charges") < sets.rms(found.without_held_out, held, "charges")
